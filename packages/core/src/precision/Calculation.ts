/** Norms, softmax and losses that calculate in the type that a policy asks for. */
import * as Result from "effect/Result"
import { RecipeError } from "../Errors.ts"
import type { Equation } from "../Node.ts"
import * as Program from "../Program.ts"
import type { Precision } from "./Policy.ts"

/** The parameters with which an equation calculates in the policy's type. Throws `RecipeError` where it cannot. */
export const calculating = (e: Equation, key: "norms" | "softmax" | "losses", policy: Precision): unknown => {
  const type = policy[key]
  if (type === "f32") return e.params
  const { calculates } = e.primitive
  const params =
    calculates === undefined
      ? Result.fail("it calculates in f32 alone")
      : calculates(
          e.params,
          type,
          e.inputs.map((x) => x.type)
        )
  if (Result.isSuccess(params)) return params.success
  throw new RecipeError({
    key: `precision.${key}`,
    problem: `${Program.line(e)} cannot calculate in ${type}: ${params.failure}`,
    hint: `use ${key} "f32"`
  })
}
