/** Tiny real models, whole training steps included. */
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Gradient from "@tessera/core/Gradient"
import * as Host from "@tessera/core/HostArray"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import type { AnyTensor, Body, Tensor } from "@tessera/core/Node"
import { build, input } from "@tessera/core/Node"
import { all } from "@tessera/core/primitives/all"
import * as Program from "@tessera/core/Program"
import * as Random from "@tessera/core/Random"
import * as Recompute from "@tessera/core/Recompute"
import * as T from "@tessera/core/Tensor"
import * as Dice from "@tessera/core/testing/Dice"
import type { Example } from "@tessera/core/testing/Programs"

const sizes = { embed: 4, heads: 2, headDim: 3, mlp: 5 } as const

interface Block {
  readonly causal: boolean
  readonly grouped: boolean
}

const block = ({ causal, grouped }: Block) => {
  const { embed, headDim, heads, mlp } = sizes
  // With groups every key head serves two query heads.
  const queryAxes = grouped ? { embed, heads, group: 2, headDim } : { embed, heads, headDim }
  const outAxes = grouped ? { heads, group: 2, headDim, embed } : { heads, headDim, embed }
  return Module.make(
    {
      gamma: Module.param({ embed }, Init.ones, { decay: false }),
      beta: Module.param({ embed }, Init.zeros, { decay: false }),
      query: Module.param(queryAxes as { embed: number; heads: number; headDim: number }, Init.fanIn("embed")),
      key: Module.param({ embed, heads, headDim }, Init.fanIn("embed")),
      value: Module.param({ embed, heads, headDim }, Init.fanIn("embed")),
      out: Module.param(outAxes as { heads: number; headDim: number; embed: number }, Init.fanIn("heads", "headDim")),
      up: Module.param({ embed, mlp }, Init.xavierUniform("embed")),
      bias: Module.param({ mlp }, Init.normal(0.1)),
      down: Module.param({ mlp, embed }, Init.xavierUniform("mlp"))
    },
    (p, layer: Module.Layer<"batch" | "seq" | "embed">, call): Module.LayerResult<"batch" | "seq" | "embed"> => {
      const x = layer.value
      const n = T.layerNorm(x, "embed", 1e-5, p.gamma, p.beta)
      const q = T.contract(n, p.query, "embed")
      const k = T.rename(T.contract(n, p.key, "embed"), "seq", "keySeq")
      const v = T.rename(T.contract(n, p.value, "embed"), "seq", "keySeq")
      const mixed = T.attention(q, k, v, {
        query: "seq",
        key: "keySeq",
        depth: "headDim",
        causal,
        ...(call.train && call.key !== null ? { dropout: { rate: 0.3, key: Random.child(call.key, "drop") } } : {})
      })
      const back = (
        grouped
          ? T.contract(mixed as Tensor<any>, p.out as Tensor<any>, "heads", "group", "headDim")
          : T.contract(mixed, p.out, "heads", "headDim")
      ) as Tensor<"batch" | "seq" | "embed">
      const y = T.add(x, back)
      const hidden = T.gelu(T.add(T.contract(y, p.up, "embed"), p.bias))
      return { value: T.add(y, T.contract(hidden, p.down, "mlp")), captured: { mixed: y } }
    }
  )
}

const values = (seed: number, axes: Axis.Axes): Host.HostArray => {
  const dice = Dice.make(seed)
  return Host.make(
    axes,
    "f32",
    Float64Array.from({ length: Axis.count(axes) }, () => Math.fround(dice.next() * 2 - 1))
  )
}

interface Classifier extends Block {
  readonly recompute: "none" | "full"
  readonly train: boolean
}

/** Patches with a class token through a stack of blocks, then a linear head and a smoothed loss. */
const classifier = (options: Classifier) => {
  const stack = Module.stack(block(options), 3)
  const params = {
    patches: Module.param({ channel: 2, embed: sizes.embed }, Init.fanIn("channel")),
    token: Module.param({ class: 1, embed: sizes.embed }, Init.normal(0.5)),
    positions: Module.param({ seq: 4, embed: sizes.embed }, Init.normal(0.5)),
    blocks: stack.params,
    head: Module.param({ embed: sizes.embed, classes: 5 }, Init.fanIn("embed"))
  }
  const leaves = Module.leaves(params)
  const traced = Program.traceUnsafe(
    {
      params: Module.inputs(params),
      image: { axes: Axis.list({ batch: 2, patch: 3, channel: 2 }), dtype: "f32" as const },
      examples: { axes: Axis.list({ batch: 2 }), dtype: "u32" as const },
      seed: { axes: [], dtype: "u32" as const },
      label: { axes: Axis.list({ batch: 2 }), dtype: "i32" as const }
    },
    (i) => {
      const p = i.params as Module.Tensors<typeof params>
      const image = i.image as AnyTensor as Tensor<"batch" | "patch" | "channel">
      const embedded = T.contract(image, p.patches, "channel")
      const tokens = T.concat(
        [
          [p.token, "class"],
          [embedded, "patch"]
        ],
        "seq"
      ) as AnyTensor as Tensor<"batch" | "seq" | "embed">
      const key = Random.make(i.seed as AnyTensor as Tensor<never, "int">, i.examples as AnyTensor)
      const call = options.train ? Module.training(key) : Module.evaluation
      const { value } = stack.apply(p.blocks, { value: T.add(tokens, p.positions) }, call)
      const first = T.sum(T.slice(value, "seq", { to: "class", start: 0, size: 1 }), "class")
      const logits = T.contract(first, p.head, "embed")
      const loss = T.softmaxCrossEntropy(logits, i.label as AnyTensor as Tensor<"batch", "int">, {
        classes: "classes",
        smoothing: 0.1
      })
      return { loss: T.mean(loss, "batch"), logits }
    }
  )
  const program = Program.withBody(traced, Recompute.apply(traced, { kind: options.recompute }))
  const weights = Evaluate.runUnsafe(Module.init(params), [Host.scalar(7, "u32")])
  return {
    program,
    count: leaves.length,
    arrays: [
      ...weights,
      values(11, Axis.list({ batch: 2, patch: 3, channel: 2 })),
      Host.make(Axis.list({ batch: 2 }), "u32", [5, 9]),
      Host.scalar(3, "u32"),
      Host.make(Axis.list({ batch: 2 }), "i32", [4, 0])
    ]
  }
}

const gradientsOf = (name: string, options: Classifier): Example => {
  const { arrays, count, program } = classifier(options)
  return {
    name,
    body: Gradient.valueAndGrad(
      program,
      Array.from({ length: count }, (_, i) => i)
    ),
    arrays
  }
}

/** Loss, gradients and one update of every parameter, as one program. */
const trainingStep = (): Example => {
  const { arrays, count, program } = classifier({ causal: false, grouped: false, recompute: "full", train: true })
  const step = Gradient.valueAndGrad(
    program,
    Array.from({ length: count }, (_, i) => i)
  )
  const parameters = step.inputs.slice(0, count)
  const moments = [0, 1].map(() => parameters.map((p) => input(p.type, "optimizer")))
  const scalars = input({ axes: Axis.list({ scalar: 4 }), dtype: "f32" })
  const gradients = step.outputs.slice(-count)
  // Updates run in the optimizer's layout, whatever that is.
  const there = (x: AnyTensor) => T.place(x, "optimizer")
  const updates = parameters.flatMap((p, i) => {
    const operands = [there(p), there(gradients[i]!), moments[0]![i]!, moments[1]![i]!, there(scalars)]
    const [next, m, v] = build(all.adamw, operands, { b1: 0.9, b2: 0.99, epsilon: 1e-8, decay: 0.05 }, "optimizer")
    return [T.place(next!, "parameter"), m!, v!]
  })
  const body: Body = Program.body([...step.inputs, ...moments.flat(), scalars], [step.outputs[0]!, ...updates])
  return {
    name: "training step",
    body,
    arrays: [
      ...arrays,
      ...parameters.map((p, i) => values(100 + i, p.type.axes)),
      ...parameters.map((p) => Host.make(p.type.axes, "f32", new Float64Array(Axis.count(p.type.axes)).fill(0.5))),
      Host.make(Axis.list({ scalar: 4 }), "f32", [0.01, 0.1, 0.01, 1])
    ]
  }
}

/** Symmetric image-text loss of two linear towers: text rows are looked up by id. */
const contrastive = (): Example => {
  const text = { axes: Axis.list({ batch: 3, seq: 2 }), dtype: "i32" as const }
  const image = { axes: Axis.list({ batch: 3, patch: 2 }), dtype: "f32" as const }
  const table = { axes: Axis.list({ vocab: 5, embed: 4 }), dtype: "f32" as const }
  const project = { axes: Axis.list({ patch: 2, embed: 4 }), dtype: "f32" as const }
  const program = Program.traceUnsafe({ table, project, image, text }, (i) => {
    const [rows, weight] = [
      i.table as AnyTensor as Tensor<"vocab" | "embed">,
      i.project as AnyTensor as Tensor<"patch" | "embed">
    ]
    const words = T.lookup(rows, "vocab", i.text as AnyTensor as Tensor<"batch" | "seq", "int">)
    const t = T.mean(words, "seq")
    const v = T.contract(i.image as AnyTensor as Tensor<"batch" | "patch">, weight, "patch")
    const unit = (x: Tensor<"batch" | "embed">) => T.div(x, T.sqrt(T.shift(T.sum(T.mul(x, x), "embed"), 1e-6)))
    const logits = T.scale(T.contract(unit(v), T.rename(unit(t), "batch", "otherBatch"), "embed"), 5)
    const labels = T.iota("batch", 3)
    const byImage = T.softmaxCrossEntropy(logits, labels, { classes: "otherBatch" })
    const byText = T.softmaxCrossEntropy(logits, T.iota("otherBatch", 3), { classes: "batch" })
    return T.add(T.mean(byImage, "batch"), T.mean(byText, "otherBatch"))
  })
  return {
    name: "contrastive",
    body: Gradient.valueAndGrad(program, [0, 1]),
    arrays: [
      values(1, table.axes),
      values(2, project.axes),
      values(3, image.axes),
      Host.make(text.axes, "i32", [0, 1, 1, 4, 9, 2])
    ]
  }
}

/** The corpus: every pass keeps the meaning of each of these. */
export const models: ReadonlyArray<Example> = [
  ((): Example => {
    const { arrays, program } = classifier({ causal: false, grouped: false, recompute: "none", train: false })
    return { name: "classifier, evaluation", body: program, arrays }
  })(),
  gradientsOf("classifier, gradients", { causal: false, grouped: false, recompute: "none", train: true }),
  gradientsOf("classifier, gradients with recompute", {
    causal: false,
    grouped: false,
    recompute: "full",
    train: true
  }),
  gradientsOf("causal with query groups, gradients", { causal: true, grouped: true, recompute: "full", train: true }),
  trainingStep(),
  contrastive()
]
