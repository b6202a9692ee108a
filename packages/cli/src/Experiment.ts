/** What a recipe means: model, task, optimizer, schedule, precision, lengths in steps. One table per family turns names into constructors. */
import * as Optimizer from "@tessera/core/Optimizer"
import { adafactor } from "@tessera/core/optimizers/adafactor"
import { adamw } from "@tessera/core/optimizers/adamw"
import { lamb } from "@tessera/core/optimizers/lamb"
import { lion } from "@tessera/core/optimizers/lion"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Precision from "@tessera/core/Precision"
import type * as Recompute from "@tessera/core/Recompute"
import * as Schedule from "@tessera/core/Schedule"
import type * as Step from "@tessera/core/Step"
import * as Strategy from "@tessera/core/Strategy"
import * as Tasks from "@tessera/core/Tasks"
import * as Vit from "@tessera/models/Vit"
import * as Result from "effect/Result"
import type { Interval, Recipe } from "./Recipe.ts"

const rule = ({ optimizer: o }: Recipe): Optimizer.Rule => {
  switch (o.name) {
    case "adamw":
      return adamw(o)
    case "sgd":
      return sgd(o)
    case "lion":
      return lion(o)
    case "lamb":
      return lamb(o)
    case "adafactor":
      return adafactor(o)
  }
}

/** The optimizer with clipping, decay and averaging. */
export const optimizer = (recipe: Recipe): Optimizer.Optimizer =>
  Optimizer.make(rule(recipe), {
    decay: recipe.optimizer.weightDecay,
    clip: recipe.clip === null ? null : { maxNorm: recipe.clip, formula: recipe.clipFormula },
    ema: recipe.ema === null ? null : { decay: recipe.ema },
    ...(recipe.optimizer.decay === "all" ? { decayMask: Optimizer.decayAll } : {})
  })

const without = <S extends { readonly name: string }>({ name: _name, ...options }: S): Omit<S, "name"> => options

/** Learning rates over `total` steps. */
export const schedule = (recipe: Recipe, total: number): Schedule.Schedule => {
  const { optimizer: o, schedule: s } = recipe
  const base = o.learningRate
  switch (s.name) {
    case "constant":
      return Schedule.constant(base)
    case "linear":
      return Schedule.linear({ ...without(s), base, total })
    case "cosine":
      return Schedule.cosine({ ...without(s), base, total })
    case "rsqrt":
      return Schedule.rsqrt({ ...without(s), base, total })
    case "nemoCosine":
      return Schedule.nemoCosine({ ...without(s), base, total })
    case "optaxWarmupCosine":
      return Schedule.optaxWarmupCosine({ ...without(s), peak: base, total: s.total ?? total })
  }
}

/** Recipes were checked: the policy is legal. */
export const precision = (recipe: Recipe): Precision.Precision => Result.getOrThrow(Precision.make(recipe.precision))

/** Mesh axes of one rank are none. */
const mesh = ({ context, data, stage, tensor }: Recipe["strategy"]["mesh"]) =>
  Object.entries({ stage, data, context, tensor }).filter(([, count]) => count > 1)

const recomputation = (given: boolean | Recompute.Policy["kind"]): Recompute.Policy["kind"] =>
  typeof given === "string" ? given : given ? "full" : "none"

/** How the step is spread over ranks. */
export const strategy = (recipe: Recipe): Strategy.Strategy => {
  const { fsdp, mesh: counts, ...choices } = recipe.strategy
  const { microbatches, recompute } = recipe
  return Strategy.make({
    ...choices,
    mesh: mesh(counts),
    ...(fsdp === null ? {} : { fsdp }),
    microbatches,
    recompute: typeof recompute === "object" ? recompute : { kind: recomputation(recompute) }
  })
}

/** Steps of the whole run. */
export const totalSteps = (recipe: Recipe, stepsPerEpoch: number): number =>
  recipe.steps ?? Math.max(1, Math.round(recipe.epochs * stepsPerEpoch))

/** Steps between two events; null where there is none before the end. */
export const interval = (every: Interval, stepsPerEpoch: number): number | null =>
  every === "end" ? null : every === "epoch" ? stepsPerEpoch : every

/** The classification task of the recipe at a batch size. */
export const task = (recipe: Recipe, batchSize: number, soft: boolean) =>
  Tasks.classification(Vit.classifier(recipe.model), {
    batchSize,
    height: recipe.model.imageSize.height,
    width: recipe.model.imageSize.width,
    channels: recipe.model.channels,
    classes: recipe.data.classes,
    // Mixed targets are smoothed when they are mixed.
    smoothing: soft ? 0 : recipe.labelSmoothing,
    soft
  })

/** Everything that the step is compiled from. */
export const config = (recipe: Recipe, soft: boolean) => {
  const { batch, loss, params } = task(recipe, recipe.batchSize, soft)
  return {
    params,
    loss,
    batch,
    optimizer: optimizer(recipe),
    precision: precision(recipe),
    strategy: strategy(recipe)
  } satisfies Step.Config<typeof params, typeof batch>
}
