/** Small models, batches and step runners that the training tests share. */
import * as Accumulate from "@tessera/core/Accumulate"
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import type { HostArray } from "@tessera/core/HostArray"
import * as Host from "@tessera/core/HostArray"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import * as Optimizer from "@tessera/core/Optimizer"
import type * as Precision from "@tessera/core/Precision"
import * as Random from "@tessera/core/Random"
import type * as Recompute from "@tessera/core/Recompute"
import * as Step from "@tessera/core/Step"
import * as Strategy from "@tessera/core/Strategy"
import * as T from "@tessera/core/Tensor"
import type { AnyTensor } from "@tessera/core/Tensor"
import * as Result from "effect/Result"

export const sizes = { embed: 3, mlp: 4, classes: 3, layers: 2 }

const block = Module.make(
  {
    gamma: Module.param({ embed: sizes.embed }, Init.ones, { decay: false }),
    beta: Module.param({ embed: sizes.embed }, Init.zeros, { decay: false }),
    up: Module.param({ embed: sizes.embed, mlp: sizes.mlp }, Init.fanIn("embed")),
    down: Module.param({ mlp: sizes.mlp, embed: sizes.embed }, Init.fanIn("mlp"))
  },
  (p, layer: Module.Layer<"batch" | "embed">, call): Module.LayerResult<"batch" | "embed"> => {
    const x = layer.value
    const h = T.gelu(T.contract(T.layerNorm(x, "embed", 1e-5, p.gamma, p.beta), p.up, "embed"))
    const y = T.contract(h, p.down, "mlp")
    if (!call.train || call.key === null) return { value: T.add(x, y), captured: {} }
    const kept = T.select(
      Random.keep(call.key, y.type.axes, 0.3) as T.Tensor<"batch" | "embed", "bool">,
      y,
      T.constant(0)
    )
    return { value: T.add(x, T.scale(kept, 1 / 0.7)), captured: {} }
  }
)
export const stack = Module.stack(block, sizes.layers)

/** A stem, two layers with dropout, a head and a scalar temperature. */
export const params = {
  stem: Module.param({ pixel: 2, embed: sizes.embed }, Init.fanIn("pixel")),
  blocks: stack.params,
  head: Module.param({ embed: sizes.embed, classes: sizes.classes }, Init.fanIn("embed")),
  temperature: Module.param({}, Init.ones, { decay: false })
}

export const batchOf = (batch: number) =>
  ({
    image: { axes: Axis.list({ batch, pixel: 2 }), dtype: "f32" },
    label: { axes: Axis.list({ batch }), dtype: "i32" },
    examples: { axes: Axis.list({ batch }), dtype: "u32" },
    weights: { axes: Axis.list({ batch }), dtype: "f32" }
  }) as const

export const logits = (p: any, image: AnyTensor, call: Module.Call): T.Tensor<"batch" | "classes"> => {
  const x = T.contract(image as T.Tensor<"batch" | "pixel">, p.stem as T.Tensor<"pixel" | "embed">, "pixel")
  const y = stack.apply(p.blocks, { value: x }, call).value
  return T.mul(T.contract(y, p.head, "embed"), p.temperature) as any
}

export const loss = (p: any, b: any, call: Module.Call): Accumulate.Loss => {
  const out = logits(p, b.image, call)
  const each = T.softmaxCrossEntropy(out, b.label, { classes: "classes" }) as T.Tensor<"batch">
  const right = T.cast(T.equal(T.argmax(out, "classes"), b.label), "f32")
  return {
    total: T.sum(T.mul(each, b.weights), "batch"),
    weight: T.sum(b.weights as T.Tensor<"batch">, "batch"),
    metrics: { correct: T.sum(T.mul(right, b.weights) as T.Tensor<"batch">, "batch") }
  }
}

/** Deterministic numbers in (-1, 1). */
export const noise = (seed: number) => {
  let s = (seed * 2654435761) >>> 0 || 1
  return () => {
    s ^= s << 13
    s >>>= 0
    s ^= s >>> 17
    s ^= s << 5
    s >>>= 0
    return (s / 2 ** 32) * 2 - 1
  }
}

export const dataOf = (batch: number, seed: number, weights?: ReadonlyArray<number>): ReadonlyArray<HostArray> => {
  const next = noise(seed + 17)
  const t = batchOf(batch)
  return [
    Host.make(t.image.axes, "f32", Array.from({ length: batch * 2 }, next)),
    Host.make(
      t.label.axes,
      "i32",
      Array.from({ length: batch }, () => Math.floor((next() + 1) * 1.5))
    ),
    Host.make(
      t.examples.axes,
      "u32",
      Array.from({ length: batch }, (_, i) => 100 + 7 * i)
    ),
    Host.make(t.weights.axes, "f32", weights ?? Array.from({ length: batch }, () => 1))
  ]
}

export const start = (tree: Module.ParamTree = params, seed = 7): ReadonlyArray<HostArray> =>
  Evaluate.runUnsafe(Module.init(tree), [Host.scalar(seed, "u32")])

export interface Scalars {
  readonly rate?: number
  readonly step?: number
  readonly seed?: number
  readonly lossScale?: number
}

export const scalars = ({ lossScale = 1, rate = 0.1, seed = 5, step = 1 }: Scalars = {}): ReadonlyArray<HostArray> => [
  Host.scalar(rate),
  Host.scalar(step),
  Host.scalar(seed, "u32"),
  Host.scalar(lossScale)
]

export interface Setup {
  readonly batch: number
  readonly optimizer: Optimizer.Optimizer
  readonly microbatches?: number
  readonly precision?: Precision.Precision
  readonly recompute?: Recompute.Policy
}

export const stepOf = ({ batch, microbatches = 1, optimizer, precision, recompute = { kind: "none" } }: Setup) =>
  Result.getOrThrow(
    Step.make({
      params,
      loss,
      batch: batchOf(batch),
      optimizer,
      strategy: { ...Strategy.single, microbatches, recompute },
      ...(precision === undefined ? {} : { precision })
    })
  )

/** State before the first update: optimizer slots, then averages. */
export const stateOf = (optimizer: Optimizer.Optimizer, tree: Module.ParamTree, values: ReadonlyArray<HostArray>) =>
  Evaluate.runUnsafe(Optimizer.initial(optimizer, tree), values)

/** Outputs of a program by name of the metric. */
export const metricsOf = (step: Step.StepProgram, outputs: ReadonlyArray<HostArray>): Record<string, number> => {
  const names = ["loss", "weight", "gradientNorm", "finite", "updated", "correct"]
  const found = outputs.slice(step.donated.length)
  return Object.fromEntries(found.map((x, i) => [names[i]!, x.data[0]!]))
}

/** Largest difference relative to the size of what is compared. */
export const difference = (a: ReadonlyArray<HostArray>, b: ReadonlyArray<HostArray>): number =>
  a.reduce((worst, x, i) => {
    const size = Math.max(1e-6, ...x.data.map(Math.abs))
    return Math.max(worst, Host.distance(x, b[i]!) / size)
  }, 0)
