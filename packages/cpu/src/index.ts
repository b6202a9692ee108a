export * as CpuBackend from "./CpuBackend.ts"
export * as NativeLibrary from "./NativeLibrary.ts"
