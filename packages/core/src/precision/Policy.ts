/** In which types a program stores and calculates: a policy, the modes by name, and what is wrong with one. */
import * as Result from "effect/Result"
import { nearest, RecipeError } from "../Errors.ts"

export type Float = "f32" | "bf16" | "f16"

/** Types of floats, by the kind of work. Contractions add up in f32 whatever they store. */
export interface Precision {
  readonly name: string
  /** In which type parameters are kept from step to step, and what the optimizer updates. */
  readonly master: Float
  /** In which type running averages of the optimizer are kept. Its arithmetic is f32, rounded once. */
  readonly state: Float
  /** In which type parameters travel to where they are used. Weights of norms travel in the type of norms, scalars in f32. */
  readonly parameters: Float
  /** Operands of contractions and attention. */
  readonly matmul: Float
  /** Stored activations: results of contractions, of elementwise operations, the stream between layers. */
  readonly pointwise: Float
  /** Sums and maxima, and what is computed from them until the next contraction. */
  readonly reduction: Float
  /** In which type norms calculate: every intermediate of their decomposition is rounded to it. */
  readonly norms: Float
  /** The same for softmax, that inside of attention too. */
  readonly softmax: Float
  /** The same for losses. */
  readonly losses: Float
  /** The type in which a logit scale (`T.logitScale`) multiplies. */
  readonly logitScale: Float
  /** In which type gradients of parameters add up over microbatches. */
  readonly accumulation: Float
  /** In which type gradients of parameters are reduced over devices, and reach the optimizer. */
  readonly gradients: Float
  /** What a loss reads, back to the contraction it comes from; null: as other activations. */
  readonly logits: Float | null
  readonly lossScale: LossScale | null
}

export interface LossScale {
  readonly initial: number
  /** Finite steps in a row after which the scale grows. */
  readonly growthInterval: number
  readonly growth: number
  readonly backoff: number
  /** Non-finite steps that are borne before the scale falls. */
  readonly hysteresis: number
  readonly minimum: number
}

/** NeMo's native_amp settings. @source megatron_vit_classification_config.yaml */
export const lossScale: LossScale = {
  initial: 2 ** 32,
  growthInterval: 1000,
  growth: 2,
  backoff: 0.5,
  hysteresis: 2,
  minimum: 1
}

/** Everything in f32. */
export const f32: Precision = {
  name: "f32",
  master: "f32",
  state: "f32",
  parameters: "f32",
  matmul: "f32",
  pointwise: "f32",
  reduction: "f32",
  norms: "f32",
  softmax: "f32",
  losses: "f32",
  logitScale: "f32",
  accumulation: "f32",
  gradients: "f32",
  logits: null,
  lossScale: null
}

/** Weights and activations f32, operands of contractions 16-bit. */
const o1 = (name: string, type: "bf16" | "f16"): Precision => ({
  ...f32,
  name,
  matmul: type,
  lossScale: type === "f16" ? lossScale : null
})

/** Weights and activations 16-bit, f32 master weights, optimizer state and gradients. */
const o2 = (name: string, type: "bf16" | "f16"): Precision => ({
  ...o1(name, type),
  parameters: type,
  pointwise: type,
  logits: "f32"
})

/** Parameters, gradients and optimizer state 16-bit, no master weights. */
const full = (name: string, type: "bf16" | "f16"): Precision => ({
  ...o2(name, type),
  master: type,
  state: type,
  accumulation: type,
  gradients: type
})

/** Weights and activations bf16, f32 master weights, gradients and norms (Megatron's O2). */
export const bf16 = o2("bf16", "bf16")
/** Weights and activations f32, operands of contractions bf16 (O1). */
export const bf16O1 = o1("bf16-O1", "bf16")
/** Nothing but bf16 lives from step to step. Updates below its resolution are lost. */
export const bf16Full = full("bf16-full", "bf16")
/** As bf16, with f16 and a dynamic loss scale. */
export const f16 = o2("f16", "f16")
export const f16O1 = o1("f16-O1", "f16")
export const f16Full = full("f16-full", "f16")

/** All arithmetic in f32, on parameters as a policy keeps them: for looking into a model. */
export const exact = ({ accumulation, gradients, lossScale: scaling, master, name, state }: Precision): Precision => ({
  ...f32,
  name: `f32 on ${name}`,
  master,
  parameters: master,
  state,
  accumulation,
  gradients,
  lossScale: scaling
})

/** By name, for recipes. */
export const all: Readonly<Record<string, Precision>> = {
  f32,
  bf16,
  "bf16-O1": bf16O1,
  "bf16-O2": bf16,
  "bf16-full": bf16Full,
  f16,
  "f16-O1": f16O1,
  "f16-O2": f16,
  "f16-full": f16Full
}

/** What may be asked for otherwise than in a mode. */
export const optionNames = ["norms", "softmax", "losses", "logitScale", "gradients"] as const

export interface Options extends Partial<Pick<Precision, (typeof optionNames)[number] | "lossScale">> {
  /** A name of `all`. */
  readonly mode: string
}

/**
 * A mode by name, or one with other choices for single kinds of work. Fails with a `RecipeError` that names the key and the nearest legal value.
 */
export const make = (given: string | Options): Result.Result<Precision, RecipeError> => {
  const { mode, ...options } = typeof given === "string" ? { mode: given } : given
  const base = Object.hasOwn(all, mode) ? all[mode] : undefined
  if (base === undefined) {
    const key = typeof given === "string" ? "precision" : "precision.mode"
    return Result.fail(unknown(key, "precision", mode, Object.keys(all)))
  }
  const changed = optionNames.filter((key) => options[key] !== undefined && options[key] !== base[key])
  const losses = options.losses ?? base.losses
  const precision: Precision = {
    ...base,
    ...options,
    logits: losses === "f32" ? base.logits : null,
    name:
      changed.length === 0 ? base.name : `${base.name} (${changed.map((key) => `${key} ${options[key]}`).join(", ")})`
  }
  const wrong = problem(precision)
  return wrong === null ? Result.succeed(precision) : Result.fail(wrong)
}

const unknown = (key: string, what: string, name: string, known: ReadonlyArray<string>): RecipeError => {
  const near = nearest(name, known)
  return new RecipeError({
    key,
    problem: `unknown ${what} "${name}"`,
    hint: near === null ? `known: ${known.join(", ")}` : `did you mean "${near}"?`
  })
}

const floats: ReadonlyArray<string> = ["f32", "bf16", "f16"]

const typeNames = [
  "matmul",
  "parameters",
  "master",
  "state",
  "pointwise",
  "reduction",
  "norms",
  "softmax",
  "losses",
  "logitScale",
  "accumulation",
  "gradients",
  "logits"
] as const

/** What is wrong with a policy by itself, or null. */
export const problem = (precision: Precision): RecipeError | null => {
  const wrong = (key: string, what: string, hint: string) =>
    new RecipeError({ key: `precision.${key}`, problem: what, hint })
  const types = typeNames.flatMap((key) => (precision[key] === null ? [] : [[key, precision[key]] as const]))
  for (const [key, type] of types)
    if (!floats.includes(type)) return unknown(`precision.${key}`, "type of floats", String(type), floats)
  const half = types.find(([, type]) => type !== "f32")?.[1] ?? "f32"
  for (const [key, type] of types) {
    if (type !== "f32" && type !== half)
      return wrong(key, `${type} beside ${half}, whose numbers have another range`, `use "${half}" or "f32"`)
  }
  const { accumulation, gradients, master, parameters, lossScale: scaling } = precision
  if (half === "f16" && scaling === null)
    return wrong("lossScale", "gradients in f16 without a loss scale: those below 6e-8 become 0", 'use one, or "bf16"')
  if (master === "f32" && accumulation !== "f32")
    return wrong("accumulation", `${accumulation} beside f32 master weights`, 'use "f32", or a full 16-bit mode')
  if (master !== "f32") {
    for (const [key, type] of Object.entries({ parameters, accumulation, gradients }))
      if (type !== master)
        return wrong(
          key,
          `${type}, but nothing is kept in more than ${master} where master weights are ${master}`,
          `use "${master}", or mode "${master}" (f32 master weights)`
        )
  }
  return scaling === null ? null : scaleProblem(scaling)
}

const scaleProblem = (scale: LossScale): RecipeError | null => {
  const { backoff, growth, growthInterval, hysteresis, initial, minimum } = scale
  const rules: ReadonlyArray<readonly [keyof LossScale, boolean, string]> = [
    ["minimum", minimum > 0, "a number above 0"],
    ["initial", initial >= minimum && Number.isFinite(initial), `at least minimum, ${minimum}`],
    ["growth", growth > 1, "a factor above 1"],
    ["backoff", backoff > 0 && backoff < 1, "a factor between 0 and 1"],
    ["growthInterval", Number.isInteger(growthInterval) && growthInterval >= 1, "a whole number of at least 1"],
    ["hysteresis", Number.isInteger(hysteresis) && hysteresis >= 1, "a whole number of at least 1"]
  ]
  const broken = rules.find(([, holds]) => !holds)
  if (broken === undefined) return null
  const [key, , hint] = broken
  return new RecipeError({ key: `precision.lossScale.${key}`, problem: `is ${scale[key]}`, hint: `needs ${hint}` })
}
