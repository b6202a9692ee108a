/**
 * Ring attention: queries, keys and values are split over one mesh axis, and keys and values go around. A rank never holds those of all; blocks
 * meet by their log-sum-exp. Masks and dropout go by the positions that travel with the keys.
 * @source arXiv:2310.01889, section 3
 */
import * as Axis from "../Axis.ts"
import type { DType } from "../DType.ts"
import type { Placement } from "../Layout.ts"
import { splitOn } from "../Layout.ts"
import type { AnyTensor, Equation, Tensor } from "../Node.ts"
import { build } from "../Node.ts"
import { add, cast, constant, div, mul, sub } from "../primitives/algebra.ts"
import type { AttentionParams } from "../primitives/attention.ts"
import { attentionBackwardP, attentionP } from "../primitives/attention.ts"
import { permuteP } from "../primitives/collective.ts"
import { equal, exp, log, maximum, select } from "../primitives/pointwise.ts"
import type { Scope } from "./Scope.ts"
import type { Way } from "./Ways.ts"

type T = Tensor<string>
const wide = (x: AnyTensor): T => cast(x as T, "f32")
const as = (x: AnyTensor, dtype: DType): AnyTensor => cast(x as T, dtype)

/** The mesh axis around which this equation sends keys and values; null where it is no attention, or its sequences are not split there. */
export const ringAxis = (e: Equation, scope: Scope): string | null => {
  if (e.primitive !== attentionP && e.primitive !== attentionBackwardP) return null
  const { key, query } = e.params as AttentionParams
  const [q, k] = [scope.home(e.inputs[0]!), scope.home(e.inputs[1]!)]
  return scope.strategy.ring.find((m) => q.get(m) === splitOn(query) && k.get(m) === splitOn(key)) ?? null
}

/** Everything that has positions of queries or of keys is split along them. */
export const ringWay = (e: Equation): Way => {
  const { key, query } = e.params as AttentionParams
  const placement = (x: AnyTensor): Placement =>
    Axis.has(x.type.axes, query) ? splitOn(query) : Axis.has(x.type.axes, key) ? splitOn(key) : "whole"
  return { inputs: e.inputs.map(placement), outputs: e.outputs.map(placement) }
}

/** The local program: `count` blocks of keys, one after another. */
export const emitRing = (
  e: Equation,
  inputs: ReadonlyArray<AnyTensor>,
  meshAxis: string,
  count: number
): ReadonlyArray<AnyTensor> => {
  const { key } = e.params as AttentionParams
  // What has keys travels; the rest stays.
  const travels = inputs.map((x) => Axis.has(x.type.axes, key))
  const visiting = inputs.filter((_, i) => travels[i])
  const onward = (xs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> =>
    build(
      permuteP,
      xs,
      { meshAxis, count, shift: 1 },
      xs.map((x) => x.role)
    )
  const operands = (block: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> => {
    let j = 0
    return inputs.map((x, i) => (travels[i] ? block[j++]! : x))
  }
  return e.primitive === attentionP
    ? forward(e, visiting, operands, onward, count)
    : backward(e, visiting, operands, onward, count)
}

type Blocks = (block: ReadonlyArray<AnyTensor>) => ReadonlyArray<AnyTensor>

const forward = (
  e: Equation,
  visiting: ReadonlyArray<AnyTensor>,
  operands: Blocks,
  onward: Blocks,
  count: number
): ReadonlyArray<AnyTensor> => {
  let block = visiting
  let [out, lse]: [T | null, T | null] = [null, null]
  for (let step = 0; step < count; step++) {
    if (step > 0) block = onward(block)
    const [part, partLse] = build(attentionP, operands(block), e.params, "compute") as readonly [AnyTensor, T]
    if (out === null || lse === null) [out, lse] = [wide(part), partLse]
    else [out, lse] = meet(out, lse, wide(part), partLse)
  }
  return [as(out!, e.outputs[0]!.type.dtype), lse!]
}

/** Two normalised parts become one; a part that sees no key has a log-sum-exp of minus infinity and counts nothing. */
const meet = (a: T, aLse: T, b: T, bLse: T): [T, T] => {
  const top = maximum(aLse, bLse)
  const none = equal(top, constant(-Infinity))
  const shift = select(none, constant(0), top) as T
  const [x, y] = [exp(sub(aLse, shift) as T), exp(sub(bLse, shift) as T)]
  const total = add(x, y)
  const safe = select(none, constant(1), total) as T
  const out = add(mul(a, div(x, safe)), mul(b, div(y, safe))) as T
  return [out, select(none, constant(-Infinity), add(shift, log(safe))) as T]
}

/** Cotangents of keys and values travel with them and come home after the last block. */
const backward = (
  e: Equation,
  visiting: ReadonlyArray<AnyTensor>,
  operands: Blocks,
  onward: Blocks,
  count: number
): ReadonlyArray<AnyTensor> => {
  let block = visiting
  let dq: T | null = null
  let owed: ReadonlyArray<T> = []
  for (let step = 0; step < count; step++) {
    if (step > 0) {
      const moved = onward([...block, ...owed])
      block = moved.slice(0, block.length)
      owed = moved.slice(block.length) as ReadonlyArray<T>
    }
    const parts = build(attentionBackwardP, operands(block), e.params, "compute").map(wide)
    dq = dq === null ? parts[0]! : (add(dq, parts[0]!) as T)
    owed = owed.length === 0 ? parts.slice(1) : owed.map((x, i) => add(x, parts[i + 1]!) as T)
  }
  const home = count > 1 ? onward(owed) : owed
  return [dq!, ...home].map((x, i) => as(x, e.outputs[i]!.type.dtype))
}
