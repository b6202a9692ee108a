/** Samples of operations that contain programs. */
import * as Axis from "@tessera/core/Axis"
import type * as DType from "@tessera/core/DType"
import type { AnyTensor, Tensor } from "@tessera/core/Node"
import { input } from "@tessera/core/Node"
import { all } from "@tessera/core/primitives/all"
import type { FusedParams, RecomputeParams, ScanParams } from "@tessera/core/primitives/control"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import * as fc from "fast-check"
import { always, around, define, dtypes, flag, sizes, subset, typesOf, upTo } from "./Sample.ts"

type F = Tensor<string>

const wholeStep = (x: F, other: F, weight: F): F => T.tanh(T.mul(T.add(x, other), weight))
const steps: ReadonlyArray<(x: F, other: F, weight: F) => F> = [
  (x, other) => T.add(x, other),
  (x, _o, weight) => T.mul(x, weight),
  (x) => T.tanh(x),
  (x, other) => T.sub(x, T.sin(other)),
  (x) => T.scale(T.gelu(x), 0.5),
  wholeStep
]

/** A short program: each code applies one step to the value, which keeps the axes of all operands. */
export const chain = (codes: ReadonlyArray<number>, x: AnyTensor, other: AnyTensor, weight: AnyTensor): AnyTensor =>
  codes.reduce<F>((value, code) => steps[code % steps.length]!(value, other as F, weight as F), x as F)

const codes = always(fc.array(fc.integer({ min: 0, max: steps.length - 1 }), { minLength: 1, maxLength: 5 }))
const fields = { sizes: sizes(3, 300), mask: upTo(7), other: upTo(7), weight: upTo(7), codes, dtype: dtypes() }

export const regions = {
  scan: define(
    all.scan,
    {
      ...fields,
      layers: upTo(5),
      reverse: flag,
      stacked: flag,
      summed: flag,
      counted: flag
    },
    (s, d) => {
      const size = d.smooth ? Math.min(3, s.layers) : s.layers
      // The carried value has every axis, so that it comes back with the axes it had.
      const wide = subset(s.sizes, s.mask | s.other | s.weight)
      const float = (own: Readonly<Record<string, number>>) => d.floats(d.axes(own), s.dtype as DType.DType, around(1))
      const value = float(wide)
      const count = d.ints([], "i32", 0, 5)
      const each = float({ ...subset(s.sizes, s.other), layers: size })
      const weight = float(subset(s.sizes, s.weight))
      const inside = [
        input({ axes: d.shuffle(value.axes), dtype: s.dtype }),
        ...(s.counted ? [input({ axes: [], dtype: "i32" })] : []),
        input({ axes: Axis.without(each.axes, ["layers"]), dtype: s.dtype }),
        input({ axes: weight.axes, dtype: s.dtype })
      ]
      const [carried, other, fixed] = [inside[0]!, inside.at(-2)!, inside.at(-1)!]
      const next = chain(s.codes, carried, other, fixed)
      const body = Program.body(inside, [
        next,
        ...(s.counted ? [T.shift(inside[1] as Tensor<never, "int">, 1)] : []),
        ...(s.stacked ? [T.mul(other as F, fixed as F)] : []),
        ...(s.summed ? [T.mul(carried as F, other as F)] : [])
      ])
      const params: ScanParams = {
        axis: "layers",
        size,
        reverse: s.reverse,
        body,
        carried: s.counted ? 2 : 1,
        each: 1,
        stacked: s.stacked ? 1 : 0
      }
      return { params, arrays: [value, ...(s.counted ? [count] : []), each, weight] }
    }
  ),
  recompute: define(all.recompute, fields, (s, d) => {
    const arrays = [s.mask, s.other, s.weight].map((mask) =>
      d.floats(d.axes(subset(s.sizes, mask)), s.dtype, around(1))
    )
    const inside = typesOf(arrays)
    const value = chain(s.codes, inside[0]!, inside[1]!, inside[2]!)
    const params: RecomputeParams = { body: Program.body(inside, [value, T.mul(value as F, inside[1] as F)]) }
    return { params, arrays }
  }),
  fused: define(all.fused, { ...fields, gemm: flag }, (s, d) => {
    const float = (own: Readonly<Record<string, number>>) => d.floats(d.axes(own), s.dtype, around(1))
    const arrays = s.gemm
      ? [float({ ...subset(s.sizes, s.mask), mlp: 3 }), float({ mlp: 3, row: 5 }), float({ row: 5 })]
      : [s.mask, s.other, s.weight].map((mask) => float(subset(s.sizes, mask)))
    const inside = typesOf(arrays) as ReadonlyArray<F>
    const [x, y, z] = [inside[0]!, inside[1]!, inside[2]!]
    const result = s.gemm
      ? T.gelu(T.add(T.contract(x, y, "mlp"), z))
      : chain(
          s.codes.filter((c) => c !== 4),
          x,
          y,
          z
        )
    const safe = result === x ? T.neg(x) : result
    const params: FusedParams = { body: Program.body(inside, [safe]), pattern: s.gemm ? "gemm" : "pointwise" }
    return { params, arrays }
  })
}
