/** What a large product reaches on this machine: the measured ceiling that steps are compared with. */
import * as Axis from "@tessera/core/Axis"
import { Backend } from "@tessera/core/services/Backend"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import * as Effect from "effect/Effect"

const size = 2048

/** GFLOP/s, the fastest of several. */
export const ceiling = (dtype: "f32" | "bf16") =>
  Effect.scoped(
    Effect.gen(function* () {
      const backend = yield* Backend
      const type = (row: string, column: string) => ({ axes: Axis.list({ [row]: size, [column]: size }), dtype })
      const program = Program.traceUnsafe({ a: type("row", "inner"), b: type("inner", "column") }, ({ a, b }) => ({
        c: T.contract(a as T.Tensor<"row" | "inner">, b as T.Tensor<"inner" | "column">, "inner")
      }))
      const executable = yield* backend.compile(program)
      const buffers = yield* Effect.forEach(program.inputs, (x) =>
        Effect.tap(backend.allocate(x.type), (b) => backend.write(b, new Uint8Array(b.bytes).fill(0x3c)))
      )
      let best = Infinity
      for (let i = 0; i < 8; i++) {
        const from = performance.now()
        yield* executable.run(buffers)
        best = Math.min(best, (performance.now() - from) / 1000)
      }
      return (2 * size ** 3) / best / 1e9
    })
  )
