/**
 * In which types a program stores and calculates. A policy is a value, found by name or made of options; one pass inserts the casts. Modes: f32, and for
 * bf16 and f16 each O1 (weights f32, operands of contractions cast), O2 (weights and activations 16-bit, f32 master weights) and full (nothing but 16
 * bits). Norms, softmax, losses and logit scale are f32 unless asked otherwise.
 */
import * as Context from "effect/Context"
import type { Precision } from "./precision/Policy.ts"
import { f32 } from "./precision/Policy.ts"

export type { Float, LossScale, Options, Precision } from "./precision/Policy.ts"
export {
  all,
  bf16,
  bf16Full,
  bf16O1,
  exact,
  f16,
  f16Full,
  f16O1,
  f32,
  lossScale,
  make,
  optionNames,
  problem
} from "./precision/Policy.ts"
export type { LossScaleState } from "./precision/LossScaling.ts"
export { initialLossScale, isLowest, nextLossScale } from "./precision/LossScaling.ts"
export { apply } from "./precision/Casts.ts"
export { placeGradients, reduceGradient } from "./precision/Gradients.ts"
export { optimizerIn, optimizerProblem } from "./precision/Stored.ts"

/** The precision in force; f32 unless provided. */
export const Current: Context.Reference<Precision> = Context.Reference<Precision>("@tessera/core/Precision", {
  defaultValue: () => f32
})
