/** Backends by name. */
import type { CompileError } from "@tessera/core/Errors"
import type { Backend } from "@tessera/core/services/Backend"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

export interface BackendOptions {
  readonly backend: "cpu" | "reference"
  /** Threads of the cpu backend; all cores unless given. */
  readonly threads?: number
  /** Memory that other ranks can read. */
  readonly shared?: boolean
}

/** Loads only the backend that is asked for. Compiling the native library is announced on standard error. */
export const layer = ({ backend, shared = false, threads }: BackendOptions): Layer.Layer<Backend, CompileError> =>
  Layer.unwrap(
    Effect.promise(async () => {
      if (backend === "reference") return (await import("@tessera/core/layers/ReferenceBackend")).layer
      const cpu = await import("@tessera/cpu/CpuBackend")
      const onProgress = (message: string) => void process.stderr.write(`${message}\n`)
      return cpu.layerWith({
        onProgress,
        memory: shared ? "shared" : "private",
        ...(threads === undefined ? {} : { threads })
      })
    })
  )
