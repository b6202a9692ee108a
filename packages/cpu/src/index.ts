export * as CpuBackend from "./CpuBackend.ts"
export * as LocalCollectives from "./LocalCollectives.ts"
export * as NativeLibrary from "./NativeLibrary.ts"
