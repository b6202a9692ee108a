/** Attention, forward and backward. */
import type { Equation } from "@tessera/core/Node"
import type * as Plan from "@tessera/core/Plan"
import type { AttentionParams } from "@tessera/core/primitives/attention"
import { opcodes } from "../opcodes.ts"
import type { Word } from "../Words.ts"
import { double, operand } from "../Words.ts"
import * as Nest from "./nest.ts"

/** Which axes are batch, key heads and query heads of one key head. */
interface Heads {
  readonly batch: ReadonlyArray<Nest.Dim>
  readonly keyHeads: ReadonlyArray<Nest.Dim>
  readonly perKeyHead: ReadonlyArray<Nest.Dim>
}

const headsOf = (q: Plan.View, k: Plan.View, batchNames: ReadonlyArray<string> | null, p: AttentionParams): Heads => {
  const axes = q.dimensions.filter((d) => d.name !== p.query && d.name !== p.depth)
  const isShared = (name: string) => k.dimensions.some((d) => d.name === name)
  const shared = axes.filter((d) => isShared(d.name))
  // Example counters name the batch axes; otherwise the last shared axis is the heads.
  const batch = batchNames === null ? shared.slice(0, -1) : shared.filter((d) => batchNames.includes(d.name))
  const keyHeads = shared.filter((d) => !batch.includes(d))
  return { batch, keyHeads, perKeyHead: axes.filter((d) => !isShared(d.name)) }
}

/** [batch, position, head] strides with a contiguous depth; copied when memory does not walk that way. */
const arranged = (
  v: Plan.View,
  batch: ReadonlyArray<Nest.Dim>,
  position: string,
  heads: ReadonlyArray<Nest.Dim>,
  depth: string,
  emission: Nest.Emission,
  isOutput = false
) => {
  const dim = (name: string) => v.dimensions.find((d) => d.name === name)!
  const strides = (view: Plan.View): ReadonlyArray<number> | null => {
    const [b, h] = [Nest.flat(view, batch), Nest.flat(view, heads)]
    const inner = view.dimensions.find((d) => d.name === depth)!
    if (b === null || h === null || (inner.stride !== 1 && inner.size > 1)) return null
    return [b, Nest.strideOf(view, position), h]
  }
  const direct = strides(v)
  if (direct !== null) return { view: v, strides: direct, finish: () => {} }
  const order = [
    ...batch,
    { name: position, size: dim(position).size },
    ...heads,
    { name: depth, size: dim(depth).size }
  ]
  const view = isOutput ? emission.temporary(order, v.dtype) : Nest.contiguous(v, order, emission)
  return {
    view,
    strides: strides(view)!,
    finish: () => {
      if (isOutput) Nest.copy(view, v, emission)
    }
  }
}

interface Extra {
  readonly words: ReadonlyArray<Word>
  readonly reads: ReadonlyArray<Plan.View>
}

/** The operands after q, k, v (out, lse, dOut), by name. */
const named = (xs: ReadonlyArray<Plan.View>, p: AttentionParams) => {
  let i = 0
  const take = (present: boolean) => (present ? xs[i++]! : null)
  const positioned = p.causal || p.lengths || p.dropout > 0
  return {
    querySegments: take(p.segments),
    keySegments: take(p.segments),
    lengths: take(p.lengths),
    queryAt: take(positioned),
    keyAt: take(positioned),
    key: take(p.dropout > 0),
    counter: take(p.dropout > 0),
    headAt: take(p.dropout > 0)
  }
}
type Named = ReturnType<typeof named>

/** Segments, lengths, dropout key and counters, positions and numbers of heads, in the library's order. */
const extrasOf = (x: Named, p: AttentionParams, h: Heads, emission: Nest.Emission): Extra => {
  const whole = (v: Plan.View | null, position: string | null) => {
    if (v === null) return null
    const wide =
      position === null ? [] : [{ name: position, size: v.dimensions.find((d) => d.name === position)?.size ?? 1 }]
    const even = Nest.flat(v, h.batch) !== null && (v.dtype === "i32" || v.dtype === "u32")
    if (even) return v
    const to = emission.temporary([...h.batch, ...wide], v.dtype === "u32" ? "u32" : "i32")
    Nest.copy(v, to, emission)
    return to
  }
  const [qs, ks, ls, cs] = [
    whole(x.querySegments, p.query),
    whole(x.keySegments, p.key),
    whole(x.lengths, null),
    whole(x.counter, null)
  ]
  const dense = (v: Plan.View | null, dims: ReadonlyArray<Nest.Dim>) =>
    v === null ? null : Nest.contiguous(v, dims, emission)
  const words2 = dense(x.key, [{ name: "word", size: 2 }])
  const heads = [...h.keyHeads, ...h.perKeyHead]
  const numbers = dense(x.headAt, heads)
  const batchStride = (v: Plan.View | null) => (v === null ? 0 : Nest.flat(v, h.batch)!)
  return {
    words: [
      operand(qs),
      batchStride(qs),
      qs === null ? 0 : Nest.strideOf(qs, p.query),
      operand(ks),
      batchStride(ks),
      ks === null ? 0 : Nest.strideOf(ks, p.key),
      operand(ls),
      batchStride(ls),
      operand(words2),
      operand(cs),
      batchStride(cs),
      operand(x.queryAt),
      operand(x.keyAt),
      operand(numbers),
      numbers === null ? 0 : Nest.flat(numbers, heads)!,
      ...p.counts
    ],
    reads: [qs, ks, ls, words2, cs, x.queryAt, x.keyAt, numbers].filter((v) => v !== null)
  }
}

export const emitAttention = (
  e: Equation,
  inputs: ReadonlyArray<Plan.View>,
  outputs: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const p = e.params as AttentionParams
  const backward = e.primitive.name === "attentionBackward"
  const [q0, k0, v0] = inputs as readonly [Plan.View, Plan.View, Plan.View]
  const rest = named(inputs.slice(backward ? 6 : 3), p)
  // Lengths, segments and counters differ by example: their axes are the batch. Without any the last shared axis is the heads.
  const perExample = [rest.querySegments, rest.keySegments, rest.lengths, rest.counter].filter((v) => v !== null)
  const examples = perExample
    .flatMap((v) => v.dimensions.map((d) => d.name))
    .filter((n) => n !== p.query && n !== p.key)
  const h = headsOf(q0, k0, perExample.length === 0 ? null : examples, p)
  const queryHeads = [...h.keyHeads, ...h.perKeyHead]
  const queryLike = (v: Plan.View, isOutput = false) =>
    arranged(v, h.batch, p.query, queryHeads, p.depth, emission, isOutput)
  const keyLike = (v: Plan.View, isOutput = false) =>
    arranged(v, h.batch, p.key, h.keyHeads, p.depth, emission, isOutput)
  const size = (v: Plan.View, name: string) => v.dimensions.find((d) => d.name === name)!.size
  const [q, k, v] = [queryLike(q0), keyLike(k0), keyLike(v0)]
  const out = queryLike(backward ? inputs[3]! : outputs[0]!, !backward)
  const lseView = backward ? inputs[4]! : outputs[1]!
  const rows = [...h.batch, ...queryHeads, { name: p.query, size: size(q0, p.query) }]
  const lseEven = Nest.flat(lseView, h.batch) !== null && Nest.flat(lseView, queryHeads) !== null
  const lse = lseEven ? lseView : backward ? Nest.contiguous(lseView, rows, emission) : emission.temporary(rows, "f32")
  const extra = extrasOf(rest, p, h, emission)
  const head: ReadonlyArray<Word> = [
    Nest.sizeOf(h.batch),
    Nest.sizeOf(queryHeads),
    Nest.sizeOf(h.keyHeads),
    size(q0, p.query),
    size(k0, p.key),
    size(q0, p.depth),
    size(v0, p.depth),
    double(p.scale),
    (p.causal ? 1 : 0) + (p.segments ? 2 : 0) + (p.lengths ? 4 : 0) + (rest.queryAt === null ? 0 : 8),
    p.offset,
    q0.dtype === "bf16" ? 1 : 0,
    double(p.dropout),
    ...[q, k, v, out].flatMap((t): ReadonlyArray<Word> => [operand(t.view), ...t.strides]),
    operand(lse),
    Nest.flat(lse, h.batch)!,
    Nest.flat(lse, queryHeads)!,
    Nest.strideOf(lse, p.query),
    ...extra.words
  ]
  if (!backward) {
    emission.push({ opcode: opcodes.ATTENTION, words: head }, [q.view, k.view, v.view, ...extra.reads], [out.view, lse])
    out.finish()
    if (!lseEven) Nest.copy(lse, lseView, emission)
    return
  }
  const dOut = queryLike(inputs[5]!)
  const [dq, dk, dv] = [queryLike(outputs[0]!, true), keyLike(outputs[1]!, true), keyLike(outputs[2]!, true)]
  emission.push(
    {
      opcode: opcodes.ATTENTION_BACKWARD,
      words: [...head, ...[dOut, dq, dk, dv].flatMap((t): ReadonlyArray<Word> => [operand(t.view), ...t.strides])]
    },
    [q.view, k.view, v.view, out.view, lse, dOut.view, ...extra.reads],
    [dq.view, dk.view, dv.view]
  )
  for (const t of [dq, dk, dv]) t.finish()
}
