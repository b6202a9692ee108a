/** Exact softmax attention as one equation each way. Kernels never hold the matrix of scores. */
import * as Result from "effect/Result"
import * as Axis from "../Axis.ts"
import type { DType } from "../DType.ts"
import { invalid, NotDifferentiable, refuse, UnknownAxis } from "../Errors.ts"
import type { AnyTensor, Primitive, Tensor, TensorType } from "../Node.ts"
import * as Random from "../Random.ts"
import { add, cast, constant, contractP, div, mul, scale, sub, sum } from "./algebra.ts"
import type { Calculating } from "./composite.ts"
import { composite } from "./composite.ts"
import { emit, emit1 } from "./emit.ts"
import { iota } from "./index.ts"
import { stopGradient } from "./mark.ts"
import { and, div256, equal, exp, less, log, not, randomBits, select } from "./pointwise.ts"
import { max } from "./reduce.ts"

type T = Tensor<string>
type Mask = Tensor<string, "bool">

/**
 * The calculation is that of the softmax. In a 16-bit one scores are rounded once they are scaled, and so is everything up to the probabilities; dropout
 * and the log-sum-exp, which the backward reads, stay f32.
 */
export interface AttentionParams extends Calculating {
  /** Axis names: position of queries, position of keys, the contracted depth. */
  readonly query: string
  readonly key: string
  readonly depth: string
  readonly scale: number
  /** Query i sees key j when j <= i + offset. */
  readonly causal: boolean
  readonly offset: number
  /** Two more operands, i32: segments of queries and of keys; a query sees keys of its own segment. */
  readonly segments: boolean
  /** One more operand, i32: keys at or beyond the length are hidden. */
  readonly lengths: boolean
  /** Dropout of probabilities. When above 0 three more operands, u32: the key `[word=2]`, the example counters, the numbers of the heads. */
  readonly dropout: number
  /** Queries and keys of the whole sequence, by which dropout counts: operands may be a part of it. 0 without dropout. */
  readonly counts: readonly [queries: number, keys: number]
}

/**
 * Where positions matter, two operands hold them: those of queries `[query]` and of keys `[key]`, i32, each consecutive. Operands rather than
 * counting from 0, because queries and keys may be one part of a longer sequence.
 */
const positioned = (p: AttentionParams): boolean => p.causal || p.lengths || p.dropout > 0

/** Operands after q, k, v (and out, lse, dOut in the backward). */
const extras = (xs: ReadonlyArray<AnyTensor>, p: AttentionParams) => {
  let i = 0
  const take = (present: boolean) => (present ? xs[i++]! : null)
  return {
    querySegments: take(p.segments),
    keySegments: take(p.segments),
    lengths: take(p.lengths),
    queryAt: take(positioned(p)),
    keyAt: take(positioned(p)),
    dropKey: take(p.dropout > 0),
    counter: take(p.dropout > 0),
    headAt: take(p.dropout > 0)
  }
}
type Extras = ReturnType<typeof extras>

const product = (x: AnyTensor, y: AnyTensor, over: ReadonlyArray<string>): T =>
  emit1(contractP, [x, y], { over, dtype: "f32" }) as T
const wide = (x: AnyTensor): T => cast(x as T, "f32")

/** Which keys each query sees, or null when all. */
const visible = (p: AttentionParams, e: Extras): Mask | null => {
  const parts: Array<Mask> = []
  const [i, j] = [e.queryAt as Tensor<string, "int">, e.keyAt as Tensor<string, "int">]
  if (p.causal) parts.push(not(less(add(i, constant(p.offset, "i32") as unknown as Tensor<never, "int">), j)))
  if (e.querySegments !== null)
    parts.push(equal(e.querySegments as Tensor<string, "int">, e.keySegments as Tensor<string, "int">))
  if (e.lengths !== null) parts.push(less(j, e.lengths as Tensor<string, "int">))
  return parts.length === 0 ? null : parts.reduce((a, b) => and(a, b))
}

/** 1/(1-rate) where a probability is kept, 0 elsewhere. Element (h, i, j) of an example has counter word (h*queries + i)*keys + j. */
const dropMask = (p: AttentionParams, e: Extras): T | null => {
  if (e.dropKey === null) return null
  const word = (n: number) => constant(n, "u32") as unknown as Tensor<string, "int">
  const at = (x: AnyTensor | null) => cast(x as Tensor<string, "int">, "u32") as Tensor<string, "int">
  const [queries, keys] = p.counts
  const rows = add(mul(at(e.headAt), word(queries)), at(e.queryAt))
  const element = add(mul(rows, word(keys)), at(e.keyAt))
  const key = (n: number) =>
    sum(select(equal(iota("word", 2, "u32"), word(n)), e.dropKey as Tensor<"word", "int">, word(0)), "word")
  const bits = randomBits(key(0), key(1), e.counter as Tensor<string, "int">, element)
  const uniform = scale(cast(div256(bits), "f32") as T, 2 ** -24)
  return select(less(uniform, constant(p.dropout)), constant(0), constant(1 / (1 - p.dropout))) as T
}

const typeOf = (p: AttentionParams): DType => p.calculation ?? "f32"
const calculates = (p: AttentionParams, calculation: DType): Result.Result<AttentionParams> =>
  Result.succeed({ ...p, calculation })

/** In the type of the softmax. */
const scoresOf = (q: AnyTensor, k: AnyTensor, p: AttentionParams, mask: Mask | null): T => {
  const scores = cast(scale(product(wide(q), wide(k), [p.depth]), p.scale), typeOf(p)) as T
  return mask === null ? scores : select(mask, scores, constant(-Infinity, typeOf(p)))
}

/** Operands agree about sizes and have the axes that the parameters name. */
const agree = (xs: ReadonlyArray<AnyTensor>, p: AttentionParams): void => {
  Axis.inOrder(
    "attention",
    xs.map((x) => x.type.axes)
  )
  const needed = [
    [p.query, p.depth],
    [p.key, p.depth],
    [p.key, p.depth]
  ]
  needed.forEach((names, i) => {
    const present = Axis.names(xs[i]!.type.axes)
    const axis = names.find((name) => !present.includes(name))
    if (axis !== undefined) refuse(new UnknownAxis({ operation: "attention", axis, present, problem: "no such axis" }))
  })
}

const flops = (times: number) => (types: ReadonlyArray<TensorType>, _out: unknown, p: AttentionParams) => {
  const pairs = Axis.count(types[0]!.axes) * Axis.find(types[1]!.axes, p.key)!.size
  return { contraction: times * 2 * pairs, other: 5 * (pairs / Math.max(1, Axis.find(types[0]!.axes, p.depth)!.size)) }
}

/** q, k, v, extras to out (axes and dtype of q) and the log-sum-exp of each row (f32). */
export const attentionP: Primitive<"attention", AttentionParams> = composite(
  "attention",
  ([q, k, v, ...rest], p) => {
    agree([q!, k!, v!, ...rest], p)
    const e = extras(rest, p)
    const scores = scoresOf(q!, k!, p, visible(p, e))
    const number = (n: number) => constant(n, typeOf(p))
    // The maximum cancels, so its derivative is not needed.
    const top = stopGradient(max(scores, p.key))
    // A row that sees no key has no maximum; zero keeps its exponentials at zero instead of NaN.
    const safe = select(equal(top, number(-Infinity)), number(0), top)
    const e1 = exp(sub(scores, safe))
    const total = sum(e1, p.key)
    const none = equal(total, number(0))
    const probabilities = wide(select(none, number(0), div(e1, select(none, number(1), total))))
    const drop = dropMask(p, e)
    const mixed = product(drop === null ? probabilities : mul(probabilities, drop), wide(v!), [p.key])
    return [
      cast(mixed, q!.type.dtype),
      select(none, constant(-Infinity), add(wide(safe), log(wide(select(none, number(1), total)))))
    ]
  },
  {
    precision: "softmax",
    calculates,
    flops: flops(2),
    vjp: {
      kind: "long",
      differentiate: (inputs, p) => {
        const outputs = emit(attentionP, inputs, p)
        return {
          outputs,
          pullback: ([dOut, dLse]) => {
            if (dLse !== null) refuse(new NotDifferentiable({ operation: "the log-sum-exp of attention" }))
            const [q, k, v, ...rest] = inputs
            if (dOut === null || dOut === undefined) return inputs.map(() => null)
            const back = emit(attentionBackwardP, [q!, k!, v!, outputs[0]!, outputs[1]!, dOut, ...rest], p)
            return [...back, ...rest.map(() => null)]
          }
        }
      }
    }
  }
)

/** q, k, v, out, lse, dOut, extras to dq, dk, dv. @source arXiv:2307.08691, algorithm 2 */
export const attentionBackwardP: Primitive<"attentionBackward", AttentionParams> = composite(
  "attentionBackward",
  ([q, k, v, out, lse, dOut, ...rest], p) => {
    agree([q!, k!, v!, out!, lse!, dOut!, ...rest], p)
    const e = extras(rest, p)
    const scores = scoresOf(q!, k!, p, visible(p, e))
    const unseen = equal(lse as T, constant(-Infinity))
    const own = (x: AnyTensor): T => cast(x as T, typeOf(p))
    const shifted = own(sub(wide(scores), select(unseen, constant(0), lse as T)))
    const probabilities = select(unseen, constant(0, typeOf(p)), exp(shifted)) as AnyTensor as T
    const drop = dropMask(p, e)
    const d = wide(dOut!)
    const delta = sum(mul(wide(out!), d), p.depth)
    const dropped = drop === null ? wide(probabilities) : mul(wide(probabilities), drop)
    const raw = product(d, wide(v!), [p.depth])
    const inner = own(sub(drop === null ? raw : mul(raw, drop), delta))
    const dScores = scale(wide(mul(probabilities, inner)), p.scale)
    // Axes that only queries have (several query heads for one key head) are summed with the query positions.
    const shared = Axis.names(q!.type.axes).filter((n) => n !== p.depth && !Axis.has(k!.type.axes, n))
    return [
      cast(product(dScores, wide(k!), [p.key]), q!.type.dtype),
      cast(product(dScores, wide(q!), shared), k!.type.dtype),
      cast(product(dropped, d, shared), v!.type.dtype)
    ]
  },
  { precision: "softmax", calculates, flops: flops(5) }
)

const logical = (x: AnyTensor, name: string): number => Axis.find(x.type.axes, name)!.logical

/** Positions along an axis, i32. */
const along = (x: AnyTensor, name: string): AnyTensor => iota(name, Axis.find(x.type.axes, name)!.size)

/**
 * Numbers of the heads, u32, over the axes of queries that are neither position, depth nor those of the example counters. Heads count by name,
 * those that keys have before those of one group, so that memory order is no meaning.
 */
const headNumbers = (q: AnyTensor, k: AnyTensor, counter: AnyTensor, p: AttentionParams): AnyTensor => {
  const word = (n: number) => constant(n, "u32") as unknown as Tensor<string, "int">
  const alone = (a: Axis.Axis) => (Axis.has(k.type.axes, a.name) ? 0 : 1)
  const heads = Axis.byName(Axis.without(q.type.axes, [p.query, p.depth, ...Axis.names(counter.type.axes)])).toSorted(
    (a, b) => alone(a) - alone(b)
  )
  return heads.reduce((n, a) => add(mul(n, word(a.logical)), iota(a.name, a.size, "u32")), word(0))
}

export interface AttentionOptions {
  readonly query: string
  readonly key: string
  readonly depth: string
  /** 1/sqrt(depth) unless given. */
  readonly scale?: number
  readonly causal?: boolean
  readonly offset?: number
  readonly segments?: { readonly query: Tensor<string, "int">; readonly key: Tensor<string, "int"> }
  readonly lengths?: Tensor<string, "int">
  readonly dropout?: { readonly rate: number; readonly key: Random.Key }
}

/**
 * `[.., query, depth] x [.., key, depth] x [.., key, depth] -> [.., query, depth]`. Shared axes (batch, heads) are batch axes; axes that only q has
 * (query heads of one group) share keys and values.
 * @source arXiv:1706.03762, equation 1
 */
export const attention = <Q extends string, K extends string>(
  q: Tensor<Q>,
  k: Tensor<K>,
  v: Tensor<K>,
  options: AttentionOptions
): Tensor<Q> => {
  const depth = Axis.find(q.type.axes, options.depth)
  if (depth === undefined || !Axis.has(k.type.axes, options.depth)) {
    return invalid(
      "attention",
      `needs the axis "${options.depth}" in queries ${Axis.print(q.type.axes)} and keys ${Axis.print(k.type.axes)}`
    )
  }
  const extra = k.type.axes.find((a) => a.name !== options.key && !Axis.has(q.type.axes, a.name))
  if (extra !== undefined || !Axis.equal(k.type.axes, v.type.axes)) {
    return invalid(
      "attention",
      `keys ${Axis.print(k.type.axes)} and values ${Axis.print(v.type.axes)} need the same axes, and but for "${options.key}" those of queries ${Axis.print(q.type.axes)}`
    )
  }
  const { segments, lengths, dropout } = options
  const rate = dropout?.rate ?? 0
  if (!(rate >= 0 && rate < 1)) invalid("attention", `dropout rate ${rate} is not in [0, 1)`)
  if (rate > 0 && dropout!.key.example === null) invalid("attention", "dropout needs a key with example counters")
  const params: AttentionParams = {
    query: options.query,
    key: options.key,
    depth: options.depth,
    scale: options.scale ?? 1 / Math.sqrt(depth.size),
    causal: options.causal ?? false,
    offset: options.offset ?? 0,
    segments: segments !== undefined,
    lengths: lengths !== undefined,
    dropout: rate,
    counts: rate > 0 ? [logical(q, options.query), logical(k, options.key)] : [0, 0]
  }
  const more: Array<AnyTensor> = []
  if (segments !== undefined) more.push(segments.query, segments.key)
  if (lengths !== undefined) more.push(lengths)
  if (positioned(params)) more.push(along(q, options.query), along(k, options.key))
  if (rate > 0) {
    const counter = dropout!.key.example!
    more.push(Random.words(dropout!.key), counter, headNumbers(q, k, counter, params))
  }
  return emit(attentionP, [q, k, v, ...more], params)[0]! as Tensor<Q>
}
