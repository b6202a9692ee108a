/** Samples of operations that have kernels of their own: activations, norms, attention, losses, updates. */
import * as Axis from "@tessera/core/Axis"
import type * as DType from "@tessera/core/DType"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import type { AnyPrimitive } from "@tessera/core/Node"
import { all } from "@tessera/core/primitives/all"
import type { AttentionParams } from "@tessera/core/primitives/attention"
import type { Case, Draw, Options, SpecOf } from "./Sample.ts"
import {
  around,
  bodyOf,
  calculation,
  calculations,
  define,
  dtypes,
  flag,
  oneOf,
  sizes,
  subset,
  upTo,
  withSpecial
} from "./Sample.ts"

/** What the forward of a backward sample gives. */
const outputsOf = (primitive: AnyPrimitive, { arrays, params }: Case): ReadonlyArray<Host.HostArray> => {
  const types = arrays.map((a) => ({ axes: a.axes, dtype: a.dtype }))
  return Evaluate.runUnsafe(bodyOf({ primitive, types, params, arrays }), arrays)
}

/** A cotangent for an array: its axes in another order. */
const cotangent = (d: Draw, like: Host.HostArray, dtype: DType.DType = like.dtype) =>
  d.floats(d.shuffle(like.axes), dtype, around(2))

const geluFields = { sizes: sizes(4), mask: upTo(15), kind: oneOf("erf", "tanh", "quick"), dtype: dtypes() }

const normFields = {
  sizes: sizes(3, 1000),
  mask: upTo(7),
  width: sizes(1, 70, 1),
  kind: oneOf("layer", "rms"),
  affine: oneOf(0, 1, 2),
  dtype: dtypes(),
  wideWeights: flag,
  calculation: calculations
}
type NormSpec = SpecOf<typeof normFields>
const norm = (s: NormSpec, d: Draw): Case => {
  const width = { mlp: s.width[0]! }
  const weights = () => d.floats(Axis.list(width), s.wideWeights ? "f32" : s.dtype, around(2))
  return {
    params: {
      kind: s.kind,
      axis: "mlp",
      epsilon: d.smooth ? 0.01 : 1e-5,
      affine: s.affine,
      ...calculation(s.calculation)
    },
    arrays: [
      d.floats(d.axes({ ...subset(s.sizes, s.mask), ...width }), s.dtype, around(3)),
      ...Array.from({ length: s.affine }, weights)
    ]
  }
}

const attentionFields = {
  shared: (o: Options) => sizes(2, o.smooth ? 4 : 6)(o),
  groups: upTo(3, 1),
  mask: upTo(7),
  queries: sizes(1, 35),
  keys: sizes(1, 35),
  depth: upTo(17, 1),
  causal: flag,
  offset: upTo(4, -4),
  first: upTo(3),
  firstKey: upTo(5),
  segments: flag,
  lengths: flag,
  dropout: oneOf(0, 0.1, 0.5),
  ownScale: flag,
  dtype: dtypes(),
  calculation: calculations
}
type AttentionSpec = SpecOf<typeof attentionFields>
const attention = (s: AttentionSpec, d: Draw): Case => {
  const batch: Readonly<Record<string, number>> = s.mask & 1 ? { batch: s.shared[0]! } : {}
  const common = { ...batch, ...(s.mask & 2 ? { heads: s.shared[1]! } : {}) }
  const groups = s.mask & 4 ? { groups: s.groups } : {}
  const depth = d.smooth ? Math.min(s.depth, 3) : s.depth
  const [queries, keys] = [s.queries[0]!, s.keys[0]!]
  const floats = (own: Readonly<Record<string, number>>) =>
    d.floats(d.axes({ ...common, ...own, headDim: depth }), s.dtype, around(2))
  const ints = (own: Readonly<Record<string, number>>, high: number) => d.ints(d.axes(own), "i32", 0, high)
  const params: AttentionParams = {
    query: "seq",
    key: "keySeq",
    depth: "headDim",
    scale: s.ownScale ? 0.7 : 1 / Math.sqrt(depth),
    causal: s.causal,
    offset: s.offset,
    segments: s.segments,
    lengths: s.lengths,
    dropout: s.dropout,
    counts: [queries + s.first, keys + 2 * s.first],
    ...calculation(s.calculation)
  }
  const arrays = [floats({ ...groups, seq: queries }), floats({ keySeq: keys }), floats({ keySeq: keys })]
  if (s.segments) arrays.push(ints({ ...batch, seq: queries }, 2), ints({ ...batch, keySeq: keys }, 2))
  if (s.lengths) arrays.push(ints(batch, keys + s.first))
  if (s.causal || s.lengths || s.dropout > 0) {
    const from = (name: string, size: number, first: number) =>
      Host.make(
        Axis.list({ [name]: size }),
        "i32",
        Float64Array.from({ length: size }, (_, i) => first + i)
      )
    arrays.push(from("seq", queries, s.first), from("keySeq", keys, s.firstKey))
  }
  if (s.dropout > 0) {
    const heads = { ...(s.mask & 2 ? { heads: s.shared[1]! } : {}), ...groups }
    arrays.push(d.values(Axis.list({ word: 2 }), "u32"), d.values(d.axes(batch), "u32"), d.values(d.axes(heads), "u32"))
  }
  return { params, arrays }
}

const lossFields = {
  sizes: sizes(3, 500),
  mask: upTo(7),
  classes: sizes(1, 70, 1),
  soft: flag,
  smoothing: oneOf(0, 0.1),
  dtype: dtypes(),
  wideTargets: flag,
  calculation: calculations
}
type LossSpec = SpecOf<typeof lossFields>
const loss = (s: LossSpec, d: Draw): Case => {
  const rows = subset(s.sizes, s.mask)
  const classes = s.classes[0]!
  const both = { ...rows, vocab: classes }
  // Impossible classes mean something where nothing is spread over all of them.
  const domain = s.smoothing === 0 && !s.soft ? { ...around(5), special: [-Infinity] } : around(5)
  return {
    params: {
      classes: "vocab",
      targets: s.soft ? "soft" : "labels",
      smoothing: s.smoothing,
      ...calculation(s.calculation)
    },
    arrays: [
      d.floats(d.axes(both), s.dtype, domain),
      s.soft
        ? d.floats(d.axes(both), s.wideTargets ? "f32" : s.dtype, { low: 0.01, high: 2 / classes })
        : d.ints(d.axes(rows), "i32", -1, classes)
    ]
  }
}

export const composites = {
  gelu: define(all.gelu, geluFields, (s, d) => ({
    params: { kind: s.kind },
    arrays: [d.floats(d.axes(subset(s.sizes, s.mask)), s.dtype, withSpecialValue(d))]
  })),
  geluBackward: define(all.geluBackward, geluFields, (s, d) => {
    const x = d.floats(d.axes(subset(s.sizes, s.mask)), s.dtype, around(4))
    return { params: { kind: s.kind }, arrays: [x, cotangent(d, x)] }
  }),
  norm: define(all.norm, normFields, norm),
  normBackward: define(all.normBackward, normFields, (s, d) => {
    const forward = norm(s, d)
    const [x, ...weights] = forward.arrays
    const [, mean, rstd] = outputsOf(all.norm, forward)
    return { params: forward.params, arrays: [x!, mean!, rstd!, cotangent(d, x!), ...weights] }
  }),
  attention: define(all.attention, attentionFields, attention),
  attentionBackward: define(all.attentionBackward, attentionFields, (s, d) => {
    const forward = attention(s, d)
    const [q, k, v, ...extras] = forward.arrays
    const [out, lse] = outputsOf(all.attention, forward)
    return { params: forward.params, arrays: [q!, k!, v!, out!, lse!, cotangent(d, q!), ...extras] }
  }),
  softmax: define(
    all.softmax,
    { sizes: sizes(3, 500), mask: upTo(7), width: sizes(1, 70, 1), dtype: dtypes(), calculation: calculations },
    (s, d) => ({
      params: { axis: "vocab", ...calculation(s.calculation) },
      arrays: [d.floats(d.axes({ ...subset(s.sizes, s.mask), vocab: s.width[0]! }), s.dtype, around(5))]
    })
  ),
  crossEntropy: define(all.crossEntropy, lossFields, loss),
  crossEntropyBackward: define(all.crossEntropyBackward, lossFields, (s, d) => {
    const forward = loss(s, d)
    const [value, lse] = outputsOf(all.crossEntropy, forward)
    return { params: forward.params, arrays: [...forward.arrays, lse!, cotangent(d, value!)] }
  }),
  sigmoidCrossEntropy: define(
    all.sigmoidCrossEntropy,
    { sizes: sizes(4), mask: upTo(15), dtype: dtypes(), wideTargets: flag, large: flag, calculation: calculations },
    (s, d) => {
      const own = subset(s.sizes, s.mask)
      // Beyond 88 a naive exponential is infinite.
      const logits = d.floats(d.axes(own), s.dtype, around(s.large && !d.smooth ? 300 : 4))
      return {
        params: calculation(s.calculation),
        arrays: [logits, d.floats(d.axes(own), s.wideTargets ? "f32" : s.dtype, { low: 0, high: 1 })]
      }
    }
  ),
  adamw: define(
    all.adamw,
    { sizes: sizes(4), mask: upTo(15), dtype: dtypes(), decay: oneOf(0, 0.05), step: upTo(200, 1) },
    (s, d) => {
      const sizesOf = subset(s.sizes, s.mask)
      const [b1, b2] = [0.9, 0.95]
      const state = (low: number) => d.floats(d.axes(sizesOf), "f32", { low, high: 1 })
      return {
        params: { b1, b2, epsilon: 1e-8, decay: s.decay },
        arrays: [
          state(-1),
          d.floats(d.axes(sizesOf), s.dtype, around(1)),
          state(-1),
          state(0.001),
          Host.make(Axis.list({ scalar: 4 }), "f32", [0.01, 1 - b1 ** s.step, 1 - b2 ** s.step, 0.5].map(Math.fround))
        ]
      }
    }
  )
}

const withSpecialValue = (d: Draw) => (d.smooth ? around(4) : withSpecial(around(4)))
