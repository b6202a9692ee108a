/**
 * What ranks do together, and the two steps that depend on the rank. They stand in programs of one rank, which partitioning makes; models never
 * call them. Several operands of one collective travel together.
 */
import * as Axis from "../Axis.ts"
import { Indivisible, PartitionError } from "../Errors.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { AnyTensor, Primitive, Role, TensorType } from "../Node.ts"
import { build, bytesOf } from "../Node.ts"

interface OnMesh {
  readonly meshAxis: string
  /** Ranks along the mesh axis. */
  readonly count: number
}

const resized = (type: TensorType, name: string, by: number, p: OnMesh): TensorType => ({
  dtype: type.dtype,
  axes: type.axes.map((a) => {
    if (a.name !== name) return a
    const size = a.size * by
    if (!Number.isInteger(size)) {
      throw new PartitionError({
        reason: new Indivisible({
          tensor: Axis.print(type.axes),
          axis: name,
          size: a.size,
          meshAxes: [p.meshAxis],
          count: p.count
        })
      })
    }
    return Axis.make(name, size)
  })
})

/** Part `index` of `count` equal ones along an axis. */
export const cut = (x: HostArray, axis: string, index: number, count: number): HostArray => {
  const size = Axis.find(x.axes, axis)!.size / count
  return Host.slice(x, axis, index * size, size)
}

/** Arrays one after another along an axis that they have. */
export const join = (xs: ReadonlyArray<HostArray>, axis: string): HostArray => {
  const [first] = xs as readonly [HostArray, ...Array<HostArray>]
  const own = Axis.find(first.axes, axis)!.size
  const axes = first.axes.map((a) => (a.name === axis ? Axis.make(axis, own * xs.length) : a))
  const data = new Float64Array(Axis.count(axes))
  const to = Host.offsets(axes, first.axes)
  const stride = own * Host.strideOf(axes, axis)
  xs.forEach((x, part) => {
    const from = Host.reorder(x, first.axes).data
    for (let k = 0; k < to.length; k++) data[to[k]! + part * stride] = from[k]!
  })
  return { axes, dtype: first.dtype, data }
}

/** Elementwise sum or maximum, in the order of the ranks. A NaN wins. */
export const combine = (xs: ReadonlyArray<HostArray>, by: "sum" | "max"): HostArray => {
  const [first, ...rest] = xs as readonly [HostArray, ...Array<HostArray>]
  const data = Float64Array.from(first.data)
  for (const x of rest) {
    const other = Host.reorder(x, first.axes).data
    for (let k = 0; k < data.length; k++) {
      if (by === "sum") data[k]! += other[k]!
      else data[k] = Number.isNaN(data[k]!) || Number.isNaN(other[k]!) ? NaN : Math.max(data[k]!, other[k]!)
    }
  }
  return { axes: first.axes, dtype: first.dtype, data }
}

type Group = ReadonlyArray<ReadonlyArray<HostArray>>

const total = (types: ReadonlyArray<TensorType>): number => types.reduce((n, t) => n + bytesOf(t), 0)
const share = (p: OnMesh): number => (p.count - 1) / p.count

const collective = <P extends OnMesh>(
  name: string,
  type: (type: TensorType, p: P, operand: number) => TensorType,
  /** What the rank at `own` gets of one operand, given that of every rank. */
  evaluate: (xs: ReadonlyArray<HostArray>, own: number, p: P, operand: number) => HostArray,
  wire: (inputs: number, outputs: number, p: P) => number
): Primitive<string, P> => ({
  name,
  type: (types, p) => types.map((t, i) => type(t, p, i)),
  meaning: {
    kind: "collective",
    evaluate: (group: Group, own, p) =>
      group[own]!.map((_, operand) =>
        evaluate(
          group.map((xs) => xs[operand]!),
          own,
          p,
          operand
        )
      ),
    wire: (inputs, outputs, p) => wire(total(inputs), total(outputs), p)
  },
  vjp: { kind: "none" },
  partition: { kind: "local" },
  flops: () => ({ contraction: 0, other: 0 }),
  precision: "exact",
  recompute: "expensive"
})

export interface AllReduceParams extends OnMesh {
  readonly by: "sum" | "max"
}
export interface AlongParams extends OnMesh {
  /** For every operand, the axis that is joined or cut. */
  readonly axes: ReadonlyArray<string>
}
export interface AllToAllParams extends OnMesh {
  readonly from: string
  readonly to: string
}
export interface PermuteParams extends OnMesh {
  /** The rank at coordinate c gets what the rank at c - shift has, around the ring. */
  readonly shift: number
}
export interface ShardParams extends OnMesh {
  readonly axis: string
}

/** Every rank gets the sum (or maximum) over all. */
export const allReduceP = collective<AllReduceParams>(
  "allReduce",
  (t) => t,
  (xs, _own, p) => combine(xs, p.by),
  (bytes, _out, p) => 2 * share(p) * bytes
)

/** Every rank gets the parts of all, joined along the axis. */
export const allGatherP = collective<AlongParams>(
  "allGather",
  (t, p, i) => resized(t, p.axes[i]!, p.count, p),
  (xs, _own, p, i) => join(xs, p.axes[i]!),
  (_in, bytes, p) => share(p) * bytes
)

/** Every rank gets its part of the sum over all. */
export const reduceScatterP = collective<AlongParams>(
  "reduceScatter",
  (t, p, i) => resized(t, p.axes[i]!, 1 / p.count, p),
  (xs, own, p, i) =>
    combine(
      xs.map((x) => cut(x, p.axes[i]!, own, p.count)),
      "sum"
    ),
  (bytes, _out, p) => share(p) * bytes
)

/** What was split along `from` becomes split along `to`. */
export const allToAllP = collective<AllToAllParams>(
  "allToAll",
  (t, p) => resized(resized(t, p.from, p.count, p), p.to, 1 / p.count, p),
  (xs, own, p) =>
    join(
      xs.map((x) => cut(x, p.to, own, p.count)),
      p.from
    ),
  (bytes, _out, p) => share(p) * bytes
)

/** Around the ring. */
export const permuteP = collective<PermuteParams>(
  "permute",
  (t) => t,
  (xs, own, p) => xs[(((own - p.shift) % p.count) + p.count) % p.count]!,
  (bytes) => bytes
)

/** Its own part of what every rank has; moves nothing. */
export const shardP = collective<ShardParams>(
  "shard",
  (t, p) => resized(t, p.axis, 1 / p.count, p),
  (xs, own, p) => cut(xs[own]!, p.axis, own, p.count),
  () => 0
)

/** What the first rank has; zero on the others, so that the sum over all is the value. Moves nothing. */
export const keepFirstP = collective<OnMesh>(
  "keepFirst",
  (t) => t,
  (xs, own) => (own === 0 ? xs[0]! : { ...xs[own]!, data: xs[own]!.data.map(() => 0) }),
  () => 0
)

/** Every collective by name. */
export const collectives = {
  allReduce: allReduceP,
  allGather: allGatherP,
  reduceScatter: reduceScatterP,
  allToAll: allToAllP,
  permute: permuteP,
  shard: shardP,
  keepFirst: keepFirstP
} as const

/** Whether it moves data between ranks. */
export const moves = (primitive: { readonly name: string }): boolean =>
  primitive !== shardP && primitive !== keepFirstP && primitive.name in collectives

/** Uses a collective on local tensors. */
export const together = <P extends OnMesh>(
  primitive: Primitive<string, P>,
  inputs: ReadonlyArray<AnyTensor>,
  params: P,
  role: Role
): ReadonlyArray<AnyTensor> => build(primitive, inputs, params, role)
