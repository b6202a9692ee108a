/** Three small models for the laws of the kit: a stack of layers with dropout, two towers that are compared, a tagger of sequences. */
import * as Axis from "@tessera/core/Axis"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import type { Tensor } from "@tessera/core/Node"
import * as Random from "@tessera/core/Random"
import * as T from "@tessera/core/Tensor"
import type { Subject } from "@tessera/core/testing"
import { experiment, subject } from "@tessera/core/testing"

type Features = Tensor<"batch" | "embed">

const residual = (embed: number, mlp: number, rate: number) =>
  Module.make(
    {
      gamma: Module.param({ embed }, Init.ones, { decay: false }),
      up: Module.param({ embed, mlp }, Init.fanIn("embed")),
      bias: Module.param({ mlp }, Init.normal(0.1), { decay: false }),
      down: Module.param({ mlp, embed }, Init.fanIn("mlp"))
    },
    (p, { value: x }: Module.Layer<"batch" | "embed">, call): Module.LayerResult<"batch" | "embed"> => {
      const normed = T.rmsNorm(x, "embed", 1e-3, p.gamma)
      const hidden = T.tanh(T.add(T.contract(normed, p.up, "embed"), p.bias))
      return { value: T.add(x, dropped(T.contract(hidden, p.down, "mlp"), rate, call)), captured: {} }
    }
  )

const dropped = (x: Features, rate: number, call: Module.Call): Features => {
  if (rate === 0 || call.key === null) return x
  const keep = Random.keep(Random.child(call.key, "drop"), x.type.axes, rate) as Tensor<"batch" | "embed", "bool">
  return T.select(keep, T.scale(x, 1 / (1 - rate)), T.constant(0)) as Features
}

/** Layers between a stem and a head; every example counts as much as its weight says. */
export const layered = (rate: number): Subject =>
  subject({
    name: rate === 0 ? "layers" : "layers with dropout",
    sizes: { batch: [2, 4, 8], embed: [2, 4], layers: [1, 2, 4], mlp: [2, 4] },
    make: ({ batch, embed, layers, mlp }) => {
      const stack = Module.stack(residual(embed, mlp, rate), layers)
      const params = {
        stem: Module.param({ pixel: 3, embed }, Init.fanIn("pixel")),
        blocks: stack.params,
        head: Module.param({ embed, class: 3 }, Init.fanIn("embed"))
      }
      const examples = Axis.list({ batch })
      return experiment({
        params,
        batch: {
          examples: { axes: examples, dtype: "u32" as const },
          image: { axes: Axis.list({ batch, pixel: 3 }), dtype: "f32" as const },
          label: { axes: examples, dtype: "i32" as const },
          weights: { axes: examples, dtype: "f32" as const }
        },
        limits: { label: 3 },
        loss: (p, b, call) => {
          const x = T.contract(b.image as Tensor<"batch" | "pixel">, p.stem, "pixel")
          const y = Module.run(stack, "blocks", p.blocks, { value: x }, call).value
          const logits = T.contract(y, p.head, "embed")
          const label = b.label as Tensor<"batch", "int">
          const weights = b.weights as Tensor<"batch">
          const each = T.softmaxCrossEntropy(logits, label, { classes: "class" })
          return { total: T.sum(T.mul(each, weights), "batch"), weight: T.sum(weights, "batch") }
        }
      })
    }
  })

const unit = (x: Tensor<"batch" | "joint">): Tensor<"batch" | "joint"> =>
  T.div(x, T.sqrt(T.shift(T.sum(T.mul(x, x), "joint"), 1e-3))) as Tensor<"batch" | "joint">

/** Two linear towers; the loss compares every example of one with every example of the other. */
export const towers: Subject = subject({
  name: "towers",
  sizes: { batch: [2, 4, 8], embed: [2, 4] },
  make: ({ batch, embed }) =>
    experiment({
      params: {
        left: Module.param({ embed, joint: 3 }, Init.fanIn("embed")),
        right: Module.param({ embed, joint: 3 }, Init.fanIn("embed")),
        temperature: Module.param({}, Init.constantOf(0.5), { decay: false })
      },
      batch: {
        examples: { axes: Axis.list({ batch }), dtype: "u32" as const },
        left: { axes: Axis.list({ batch, embed }), dtype: "f32" as const },
        right: { axes: Axis.list({ batch, embed }), dtype: "f32" as const }
      },
      loss: {
        negatives: "global",
        features: (p, b) => ({
          left: unit(T.contract(b.left as Features, p.left, "embed")),
          right: unit(T.contract(b.right as Features, p.right, "embed"))
        }),
        loss: (f, p) => {
          const left = f["left"] as Tensor<"batch" | "joint">
          const right = T.rename(f["right"] as Tensor<"batch" | "joint">, "batch", "otherBatch")
          const logits = T.mul(T.contract(left, right, "joint"), T.exp(p.temperature))
          const size = T.sizeOf(left, "batch")
          const each = T.softmaxCrossEntropy(logits, T.iota("batch", size), { classes: "otherBatch" })
          return { total: T.sum(each, "batch"), weight: T.constant(size) }
        }
      }
    })
})

type Tokens = Tensor<"batch" | "seq" | "embed">

/** Words of a sequence look at each other once, and each gets a label; a part of the labels counts. */
export const tagger: Subject = subject({
  name: "tagger",
  sizes: { batch: [2, 4], seq: [2, 4], embed: [2, 4], heads: [1, 2, 4], vocab: [4, 8] },
  make: ({ batch, embed, heads, seq, vocab }) => {
    const both = Axis.list({ batch, seq })
    return experiment({
      params: {
        table: Module.param({ vocab, embed }, Init.normal(0.5)),
        query: Module.param({ embed, heads, depth: 2 }, Init.fanIn("embed")),
        key: Module.param({ embed, heads, depth: 2 }, Init.fanIn("embed")),
        value: Module.param({ embed, heads, depth: 2 }, Init.fanIn("embed")),
        out: Module.param({ heads, depth: 2, embed }, Init.fanIn("heads", "depth"))
      },
      batch: {
        examples: { axes: Axis.list({ batch }), dtype: "u32" as const },
        words: { axes: both, dtype: "i32" as const },
        labels: { axes: both, dtype: "i32" as const },
        weights: { axes: both, dtype: "f32" as const }
      },
      limits: { words: vocab, labels: vocab },
      loss: (p, b) => {
        const x: Tokens = T.lookup(p.table, "vocab", b.words as Tensor<"batch" | "seq", "int">)
        const k = T.rename(T.contract(x, p.key, "embed"), "seq", "keySeq")
        const v = T.rename(T.contract(x, p.value, "embed"), "seq", "keySeq")
        const mixed = T.attention(T.contract(x, p.query, "embed"), k, v, {
          query: "seq",
          key: "keySeq",
          depth: "depth"
        })
        const y = T.add(x, T.contract(mixed, p.out, "heads", "depth"))
        const each = T.softmaxCrossEntropy(
          T.contract(y, p.table, "embed"),
          b.labels as Tensor<"batch" | "seq", "int">,
          { classes: "vocab" }
        )
        const weights = b.weights as Tensor<"batch" | "seq">
        return { total: T.sum(T.mul(each, weights), "batch", "seq"), weight: T.sum(weights, "batch", "seq") }
      }
    })
  }
})
