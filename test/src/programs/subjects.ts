/** Small models with everything that strategies have to get right: a vision transformer, two towers compared with each other, a decoder. */
import * as Axis from "@tessera/core/Axis"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import type { AnyTensor, Tensor } from "@tessera/core/Node"
import * as Random from "@tessera/core/Random"
import * as Tasks from "@tessera/core/Tasks"
import type { Subject } from "@tessera/core/testing/Subject"
import { subject } from "@tessera/core/testing/Subject"
import * as T from "@tessera/core/Tensor"
import * as UnitNorm from "@tessera/models/layers/unitNorm"
import * as Contrastive from "@tessera/models/losses/contrastive"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"

type Tokens = Tensor<"batch" | "seq" | "embed">
type Layer = Module.Layer<"batch" | "seq" | "embed">
type Result = Module.LayerResult<"batch" | "seq" | "embed">

/** A vision transformer with dropout of every kind; `seq` (patches and class tokens) need not divide. */
export const vit = (classTokens: 0 | 1 | 8): Subject =>
  subject({
    name: `vision transformer, ${classTokens} class tokens`,
    sizes: { batch: [8, 4], layers: [2, 4], hidden: [8], rows: [2, 3], mlp: [8, 12] },
    make: ({ batch, hidden, layers, mlp, rows }) => {
      const config = VitConfig.make({
        imageSize: { height: 2 * rows!, width: 4 },
        patch: 2,
        channels: 1,
        hidden: hidden!,
        mlp: mlp!,
        heads: 4,
        layers: layers!,
        classTokens,
        pooling: classTokens === 0 ? "meanPatches" : "meanAll",
        dropout: 0.1,
        attentionDropout: 0.2,
        dropPath: 0.2,
        dropPatch: rows! > 2 ? 0.3 : 0,
        head: { kind: "linear", classes: 6, kernel: "normal", bias: 0 }
      })
      const task = Tasks.classification(Vit.classifier(config), {
        batchSize: batch!,
        height: 2 * rows!,
        width: 4,
        channels: 1,
        classes: 6,
        smoothing: 0.1
      })
      return { ...task, limits: { labels: 6 } }
    }
  })

interface BlockSizes {
  readonly embed: number
  readonly heads: number
  readonly group: number
  readonly headDim: number
  readonly mlp: number
}

const drop = (x: Tokens, rate: number, name: string, call: Module.Call): Tokens => {
  if (!call.train || call.key === null) return x
  const keep = Random.keep(Random.child(call.key, name), x.type.axes, rate)
  return T.select(keep, T.scale(x, 1 / (1 - rate)), T.constant(0)) as AnyTensor as Tokens
}

/** A layer of a decoder: root mean square norms, rotary positions, grouped queries, a gated MLP. */
const llamaBlock = ({ embed, group, headDim, heads, mlp }: BlockSizes) =>
  Module.make(
    {
      normA: Module.param({ embed }, Init.ones, { decay: false }),
      query: Module.param({ embed, heads, group, headDim }, Init.fanIn("embed")),
      key: Module.param({ embed, heads, headDim }, Init.fanIn("embed")),
      value: Module.param({ embed, heads, headDim }, Init.fanIn("embed")),
      out: Module.param({ heads, group, headDim, embed }, Init.fanIn("heads", "group", "headDim")),
      normB: Module.param({ embed }, Init.ones, { decay: false }),
      gate: Module.param({ embed, mlp }, Init.fanIn("embed")),
      up: Module.param({ embed, mlp }, Init.fanIn("embed")),
      down: Module.param({ mlp, embed }, Init.fanIn("mlp"))
    },
    (p, layer: Layer, call): Result => {
      const x = layer.value
      const h = T.rmsNorm(x, "embed", 1e-5, p.normA)
      const q = rotary(T.contract(h, p.query, "embed") as AnyTensor, headDim)
      const k = T.rename(rotary(T.contract(h, p.key, "embed") as AnyTensor, headDim) as Tensor<any>, "seq", "keySeq")
      const v = T.rename(T.contract(h, p.value, "embed"), "seq", "keySeq")
      const mixed = T.attention(q as Tensor<any>, k as Tensor<any>, v as Tensor<any>, {
        query: "seq",
        key: "keySeq",
        depth: "headDim",
        causal: true,
        ...(call.train && call.key !== null ? { dropout: { rate: 0.2, key: Random.child(call.key, "attend") } } : {})
      }) as Tensor<any>
      const back = T.contract(mixed, p.out as Tensor<any>, "heads", "group", "headDim") as AnyTensor as Tokens
      const y = T.add(x, drop(back, 0.1, "attention", call))
      const g = T.rmsNorm(y, "embed", 1e-5, p.normB)
      const wide = T.mul(T.silu(T.contract(g, p.gate, "embed")), T.contract(g, p.up, "embed"))
      const value = T.add(y, drop(T.contract(wide, p.down, "mlp") as AnyTensor as Tokens, 0.1, "mlp", call))
      return { value, captured: {} }
    }
  )

/** Rotary positions over pairs of neighbours. `[.., seq, headDim]` @source arXiv:2104.09864, equation 34 */
const rotary = (x: AnyTensor, headDim: number): AnyTensor => {
  const half = headDim / 2
  const pairs = T.split(x as Tensor<any>, "headDim", { outer: "half", inner: "pair", size: 2 }) as Tensor<any>
  const frequency = T.exp(T.scale(T.cast(T.iota("half", half), "f32") as Tensor<"half">, -Math.log(100) / half))
  const angle = T.mul(T.cast(T.iota("seq", T.sizeOf(x, "seq")), "f32") as Tensor<"seq">, frequency) as Tensor<any>
  const at = (i: number) => T.sum(T.slice(pairs, "pair", { to: "one", start: i, size: 1 }) as Tensor<any>, "one")
  const [a, b] = [at(0) as Tensor<any>, at(1) as Tensor<any>]
  const [c, s] = [T.cos(angle), T.sin(angle)]
  const wide = (y: AnyTensor, name: string) =>
    T.broadcast(y as Tensor<any>, [...y.type.axes, Axis.make(name, 1)] as any)
  const turned = T.concat(
    [
      [wide(T.sub(T.mul(a, c), T.mul(b, s)), "first"), "first"],
      [wide(T.add(T.mul(a, s), T.mul(b, c)), "second"), "second"]
    ],
    "pair"
  ) as Tensor<any>
  return T.merge(turned, "half", "pair", "headDim")
}

type Int<A extends string> = Tensor<A, "int">

/** Next-token loss over a vocabulary that need not divide, labels of unequal number. */
export const decoder = (tied: boolean): Subject =>
  subject({
    name: tied ? "decoder, tied embeddings" : "decoder",
    sizes: { batch: [4, 8], seq: [4, 5, 8], embed: [8], layers: [2, 4], mlp: [8], vocab: [8, 7, 13] },
    make: ({ batch, embed, layers, mlp, seq, vocab }) => {
      const stack = Module.stack(llamaBlock({ embed: embed!, heads: 4, group: 2, headDim: 2, mlp: mlp! }), layers!)
      const params = {
        table: Module.param({ vocab: vocab!, embed: embed! }, Init.normal(0.5)),
        blocks: stack.params,
        norm: Module.param({ embed: embed! }, Init.ones, { decay: false }),
        ...(tied ? {} : { head: Module.param({ embed: embed!, vocab: vocab! }, Init.fanIn("embed")) })
      }
      const both = Axis.list({ batch: batch!, seq: seq! })
      return {
        params,
        batch: {
          examples: { axes: Axis.list({ batch: batch! }), dtype: "u32" as const },
          ids: { axes: both, dtype: "i32" as const },
          labels: { axes: both, dtype: "i32" as const },
          weights: { axes: both, dtype: "f32" as const }
        },
        limits: { ids: vocab!, labels: vocab! },
        loss: (p: any, b: any, call: Module.Call) => {
          const x = T.lookup(p.table as Tensor<"vocab" | "embed">, "vocab", b.ids as Int<"batch" | "seq">)
          const y = Module.run(stack, "blocks", p.blocks, { value: x as AnyTensor as Tokens }, call).value
          const head = (tied ? p.table : p.head) as Tensor<"embed" | "vocab">
          const logits = T.contract(T.rmsNorm(y, "embed", 1e-5, p.norm as Tensor<"embed">), head, "embed")
          const each = T.softmaxCrossEntropy(logits as AnyTensor as Tensor<any>, b.labels as Tensor<any, "int">, {
            classes: "vocab"
          }) as Tensor<any>
          return {
            total: T.sum(T.mul(each, b.weights as Tensor<any>), "batch", "seq") as AnyTensor as Tensor<never>,
            weight: T.sum(b.weights as Tensor<any>, "batch", "seq") as AnyTensor as Tensor<never>
          }
        }
      }
    }
  })

/** A layer of an encoder: layer norms, biases, GELU. */
const encoderBlock = ({ embed, headDim, heads, mlp }: BlockSizes, causal: boolean) =>
  Module.make(
    {
      gammaA: Module.param({ embed }, Init.ones, { decay: false }),
      betaA: Module.param({ embed }, Init.zeros, { decay: false }),
      query: Module.param({ embed, heads, headDim }, Init.fanIn("embed")),
      key: Module.param({ embed, heads, headDim }, Init.fanIn("embed")),
      value: Module.param({ embed, heads, headDim }, Init.fanIn("embed")),
      out: Module.param({ heads, headDim, embed }, Init.fanIn("heads", "headDim")),
      outBias: Module.param({ embed }, Init.zeros, { decay: false }),
      gammaB: Module.param({ embed }, Init.ones, { decay: false }),
      betaB: Module.param({ embed }, Init.zeros, { decay: false }),
      up: Module.param({ embed, mlp }, Init.fanIn("embed")),
      upBias: Module.param({ mlp }, Init.zeros, { decay: false }),
      down: Module.param({ mlp, embed }, Init.fanIn("mlp"))
    },
    (p, layer: Layer, call): Result => {
      const x = layer.value
      const h = T.layerNorm(x, "embed", 1e-5, p.gammaA, p.betaA)
      const k = T.rename(T.contract(h, p.key, "embed"), "seq", "keySeq")
      const v = T.rename(T.contract(h, p.value, "embed"), "seq", "keySeq")
      const mixed = T.attention(T.contract(h, p.query, "embed"), k, v, {
        query: "seq",
        key: "keySeq",
        depth: "headDim",
        causal
      })
      const back = T.add(T.contract(mixed, p.out, "heads", "headDim"), p.outBias)
      const y = T.add(x, drop(back, 0.1, "attention", call))
      const g = T.layerNorm(y, "embed", 1e-5, p.gammaB, p.betaB)
      const wide = T.gelu(T.add(T.contract(g, p.up, "embed"), p.upBias))
      const value = T.add(y, drop(T.contract(wide, p.down, "mlp") as AnyTensor as Tokens, 0.1, "mlp", call))
      return { value, captured: {} }
    }
  )

/** Images and texts in one space; the loss compares every image with every text. */
export const contrastive: Subject = subject({
  name: "two towers",
  sizes: { batch: [8, 4], seq: [4, 5], embed: [8], layers: [2], vocab: [8, 7] },
  make: ({ batch, embed, layers, seq, vocab }) => {
    const sizes = { embed: embed!, heads: 4, group: 1, headDim: 2, mlp: 8 }
    const [image, text] = [
      Module.stack(encoderBlock(sizes, false), layers!),
      Module.stack(encoderBlock(sizes, true), layers!)
    ]
    const params = {
      patches: Module.param({ pixel: 3, embed: embed! }, Init.fanIn("pixel")),
      image: image.params,
      table: Module.param({ vocab: vocab!, embed: embed! }, Init.normal(0.5)),
      positions: Module.param({ seq: seq!, embed: embed! }, Init.normal(0.5)),
      text: text.params,
      imageOut: Module.param({ embed: embed!, joint: 4 }, Init.fanIn("embed")),
      textOut: Module.param({ embed: embed!, joint: 4 }, Init.fanIn("embed")),
      ...Contrastive.params()
    }
    return {
      params,
      batch: {
        examples: { axes: Axis.list({ batch: batch! }), dtype: "u32" as const },
        images: { axes: Axis.list({ batch: batch!, seq: seq!, pixel: 3 }), dtype: "f32" as const },
        ids: { axes: Axis.list({ batch: batch!, seq: seq! }), dtype: "i32" as const },
        ends: { axes: Axis.list({ batch: batch! }), dtype: "i32" as const },
        weights: { axes: Axis.list({ batch: batch! }), dtype: "f32" as const }
      },
      limits: { ids: vocab!, ends: seq! },
      loss: {
        negatives: "global" as const,
        features: (p: any, b: any, call: Module.Call) => {
          const embedded = T.contract(b.images as Tensor<"batch" | "seq" | "pixel">, p.patches as Tensor<any>, "pixel")
          const seen = Module.run(image, "image", p.image, { value: embedded as AnyTensor as Tokens }, call).value
          const rows = T.lookup(p.table as Tensor<"vocab" | "embed">, "vocab", b.ids as Int<"batch" | "seq">)
          const placed = T.add(rows, p.positions as Tensor<"seq" | "embed">) as AnyTensor as Tokens
          const read = Module.run(text, "text", p.text, { value: placed }, call).value
          const last = T.lookup(read, "seq", b.ends as Int<"batch">)
          const joint = (x: AnyTensor, weight: AnyTensor): Tensor<"batch" | "joint"> =>
            UnitNorm.apply(T.contract(x as Tensor<any>, weight as Tensor<any>, "embed"), "joint")
          return { image: joint(T.mean(seen, "seq"), p.imageOut), text: joint(last, p.textOut) }
        },
        loss: ({ image, text }: any, { logScale }: any, { weights }: any) => {
          const pairs: Contrastive.Pairs<"joint"> = { image, text, logScale, weights }
          return { ...Contrastive.loss(pairs), metrics: Contrastive.correct(pairs) }
        }
      }
    }
  }
})

export const subjects: ReadonlyArray<Subject> = [vit(0), vit(1), vit(8), contrastive, decoder(false), decoder(true)]
