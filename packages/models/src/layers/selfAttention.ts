/** Multi-head attention of tokens to tokens. */
import type * as Init from "@tessera/core/Init"
import { invalid } from "@tessera/core/Errors"
import * as Module from "@tessera/core/Module"
import * as T from "@tessera/core/Tensor"
import type { Initialisation } from "./initialisation.ts"

export interface Sizes {
  readonly hidden: number
  readonly heads: number
  /** Width of a head; heads x headDim may differ from the hidden width. */
  readonly headDim: number
}

type Projection = Module.Param<"embed" | "heads" | "headDim">
type ProjectionBias = Module.Param<"heads" | "headDim">

export type Params = {
  readonly query: Projection
  readonly key: Projection
  readonly value: Projection
  readonly out: Projection
  readonly queryBias?: ProjectionBias
  readonly keyBias?: ProjectionBias
  readonly valueBias?: ProjectionBias
  readonly outBias: Module.Param<"embed">
}

/** Declares the four projections; biases of query, key and value are optional, none is decayed. */
export const params = (
  { headDim, heads, hidden }: Sizes,
  init: Initialisation,
  options: { readonly qkvBias: boolean }
): Params => {
  const into = (begin: Init.Init) => Module.param({ embed: hidden, heads, headDim }, begin)
  const bias = () => Module.param({ heads, headDim }, init.attentionBias, { decay: false })
  return {
    query: into(init.kernel("embed")),
    key: into(init.kernel("embed")),
    value: into(init.kernel("embed")),
    out: Module.param({ heads, headDim, embed: hidden }, init.output("heads", "headDim")),
    ...(options.qkvBias ? { queryBias: bias(), keyBias: bias(), valueBias: bias() } : {}),
    outBias: Module.param({ embed: hidden }, init.attentionBias, { decay: false })
  }
}

export interface Options {
  /** Dropout of probabilities, in training. */
  readonly dropout: number
  /** Hand out the probabilities. They are then computed as a tensor of their own: for pictures, not for training. */
  readonly probabilities: boolean
}

export interface Attended {
  readonly value: T.Tensor<"batch" | "seq" | "embed">
  /** `[batch, heads, seq, keySeq]`, rows sum to 1; when asked for. */
  readonly probabilities?: T.Tensor<"batch" | "heads" | "seq" | "keySeq">
}

/**
 * Queries attend to tokens, whose positions may be others: `[batch, seq, embed] x [batch, seq, embed] -> [batch, seq, embed]`. Projected before their
 * axis is renamed, so that the three products of self-attention share one operand and run as one.
 * @source arXiv:1706.03762, section 3.2.2
 */
export const attend = (
  p: Module.Tensors<Params>,
  queries: T.Tensor<"batch" | "seq" | "embed">,
  tokens: T.Tensor<"batch" | "seq" | "embed">,
  options: Options,
  call: Module.Call
): Attended => {
  const plus = <A extends string>(x: T.Tensor<A>, bias: T.Tensor<"heads" | "headDim"> | undefined): T.Tensor<A> =>
    bias === undefined ? x : (T.add(x, bias) as T.AnyTensor)
  const q = plus(T.contract(queries, p.query, "embed"), p.queryBias)
  const k = T.rename(plus(T.contract(tokens, p.key, "embed"), p.keyBias), "seq", "keySeq")
  const v = T.rename(plus(T.contract(tokens, p.value, "embed"), p.valueBias), "seq", "keySeq")
  const out = (mixed: T.Tensor<"batch" | "seq" | "heads" | "headDim">) =>
    T.add(T.contract(mixed, p.out, "heads", "headDim"), p.outBias)
  const rate = call.train ? options.dropout : 0
  if (!options.probabilities) {
    const { key } = call
    if (rate > 0 && key === null)
      return invalid("attention", "training draws random numbers; the call has no key (use Module.training)")
    const dropout = rate > 0 ? { dropout: { rate, key: key! } } : {}
    return { value: out(T.attention(q, k, v, { query: "seq", key: "keySeq", depth: "headDim", ...dropout })) }
  }
  if (rate > 0) return invalid("attention", "probabilities are handed out in evaluation only")
  const scores = T.scale(T.contract(q, k, "headDim"), 1 / Math.sqrt(T.sizeOf(q, "headDim")))
  const probabilities = T.softmax(scores, "keySeq")
  return { value: out(T.contract(probabilities, v, "keySeq")), probabilities }
}

/** `[batch, seq, embed] -> [batch, seq, embed]` */
export const make = (
  sizes: Sizes,
  init: Initialisation,
  options: Options & { readonly qkvBias: boolean }
): Module.Module<Params, T.Tensor<"batch" | "seq" | "embed">, Attended> =>
  Module.make(params(sizes, init, options), (p, x, call) => attend(p, x, x, options, call))
