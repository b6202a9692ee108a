/** Random programs full of what simplification and precision look at: redundant operations, loops with dead parts, nested regions. */
import * as Axis from "@tessera/core/Axis"
import * as Host from "@tessera/core/HostArray"
import type { AnyTensor } from "@tessera/core/Node"
import { build } from "@tessera/core/Node"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import { sliceP } from "@tessera/core/primitives/axes"
import * as fc from "fast-check"
import * as M from "./models.ts"

type Any = any
export const [A, B, N] = [2, 3, 2]
export const typeX = { axes: Axis.list({ a: A, b: B }), dtype: "f32" as const }

/** One random operation on tensors of the pool; all have the axes a and b, so that everything fits together. */
const operation = (
  pool: ReadonlyArray<AnyTensor>,
  [kind, i, j]: readonly [number, number, number],
  depth: number
): ReadonlyArray<AnyTensor> => {
  const x = pool[i % pool.length] as Any
  const y = pool[j % pool.length] as Any
  const zero = T.constant(0)
  switch (kind % 18) {
    case 0:
      return [T.add(x, y)]
    case 1:
      return [T.mul(T.tanh(x), y)]
    case 2:
      return [T.scale(x, 1)]
    case 3:
      return [T.add(T.broadcast(zero, typeX.axes as Any), x)]
    case 4:
      return [T.neg(T.neg(x))]
    case 5:
      return [T.scale(T.scale(x, 0.5), (j % 3) - 1)]
    case 6:
      return [T.cast(T.cast(x, "bf16"), "f32")]
    case 7:
      return [T.cast(T.cast(T.cast(x, "bf16"), "f32"), "bf16")].map((z) => T.cast(z, "f32"))
    case 8:
      return [T.rename(T.rename(x, "a" as never, "c"), "c" as never, "a")]
    case 9:
      return [T.add(x, T.sum(T.broadcast(T.sum(y, "b" as never), typeX.axes as Any), "b" as never))]
    case 10:
      return build(sliceP, [x], { axis: "b", to: "b", start: 0, size: B }, "compute")
    case 11:
      return [T.place(T.place(x, "gradient"), "compute")]
    case 12:
      return [T.div(T.sub(x, zero), T.constant(1))]
    case 13:
      return [T.merge(T.split(x, "b" as never, { outer: "b", inner: "d", size: 3 }), "b" as never, "d" as never, "b")]
    case 14:
      return [T.mul(x, T.cast(T.constant(1 + (j % 2)), "f32") as Any)]
    case 15:
      return [T.maximum(x, T.stopGradient(y))]
    default: {
      if (depth === 0) return [x]
      // A loop with a dead sum, a dead stack, a carry nobody reads, an operand given twice and one that nothing reads.
      if (kind % 18 === 16) {
        const each = T.broadcast(y, [Axis.make("n", N), ...typeX.axes] as Any)
        const out = T.scan("n", { carried: [x, y], each: [each, each, each], fixed: [x, x, y] }, (s) => {
          const inner = operation([s.carried[0]!, s.each[1]!, s.fixed[1]!], [i, j, kind], depth - 1)
          const z: Any = T.scale(inner[0] as Any, 0.5)
          return {
            carried: [z, T.add(s.carried[1] as Any, s.each[0] as Any)],
            stacked: [T.mul(z, s.each[0] as Any), T.neg(z)],
            summed: [T.exp(z), T.mul(s.fixed[0] as Any, s.each[2] as Any)]
          }
        })
        return [out.carried[0]!, out.summed[1]!, T.sum(out.stacked[0] as Any, "n" as never)].slice(0, 1 + (j % 3))
      }
      const out = T.recompute([x, y, x], ([p, q, r]) => [
        ...operation([p!, q!], [j, i, kind], depth - 1),
        T.add(q as Any, r as Any),
        T.neg(p as Any)
      ])
      return out.slice(0, 1 + (i % 3))
    }
  }
}

export type Code = ReadonlyArray<readonly [number, number, number]>
export const programOf = (code: Code): Program.Program => {
  const p = Program.traceUnsafe({ x: typeX, y: typeX }, (given: Any) => {
    const pool: Array<AnyTensor> = [given.x, given.y]
    for (const c of code) pool.push(...operation(pool, c, 2))
    return pool.slice(-3)
  })
  return p as Program.Program
}
export const codes = fc.array(fc.tuple(fc.nat({ max: 1000 }), fc.nat({ max: 20 }), fc.nat({ max: 20 })), {
  minLength: 1,
  maxLength: 14
})

export const valuesOf = (seed: number) => {
  const next = M.noise(seed + 1)
  return [0, 1].map(() => Host.make(typeX.axes, "f32", Array.from({ length: A * B }, next)))
}
