/** What a failed command says and how it exits: 2 for something the user can put right, 1 for everything else, 130 when interrupted. */
import * as Cause from "effect/Cause"
import * as Schema from "effect/Schema"

/** A command that was asked for something that cannot be: a wrong folder, a file that is not there. */
export class UsageError extends Schema.TaggedError<UsageError>()("UsageError", {
  problem: Schema.String,
  hint: Schema.String
}) {
  override get message() {
    return `${this.problem}${this.hint === "" ? "" : `; ${this.hint}`}`
  }
}

/** A rank that was started did not end well. It has said why. */
export class LaunchError extends Schema.TaggedError<LaunchError>()("LaunchError", {
  detail: Schema.String,
  exitCode: Schema.Literals([1, 2])
}) {
  override get message() {
    return this.detail
  }
}

export interface Failure {
  readonly kind: string
  readonly message: string
  readonly exitCode: number
}

/** Errors about what was given: recipes, files, checkpoints. */
const ofUser = new Set([
  "RecipeError",
  "PartitionError",
  "UsageError",
  "NameTableError",
  "SafetensorsError",
  "ShowHelp"
])

/** Reasons of an error that say the machine failed, not the input. */
const ofMachine = new Set(["WriteFailed", "ReadFailed", "WorkerFailed"])

const withReason = new Set(["DataError", "CheckpointError"])

const isError = (x: unknown): x is { readonly _tag: string; readonly message: string; readonly reason?: unknown } =>
  typeof x === "object" && x !== null && "_tag" in x && "message" in x

const reasonOf = (reason: unknown): string =>
  typeof reason === "object" && reason !== null && "_tag" in reason ? String(reason._tag) : ""

/** The message of a cause without a stack trace. */
export const describe = (cause: Cause.Cause<unknown>): Failure => {
  if (Cause.hasInterruptsOnly(cause)) return { kind: "Interrupted", message: "interrupted", exitCode: 130 }
  const error = Cause.squash(cause)
  if (!isError(error)) {
    return { kind: "Defect", message: error instanceof Error ? error.message : String(error), exitCode: 1 }
  }
  if (error instanceof LaunchError) return { kind: error._tag, message: error.message, exitCode: error.exitCode }
  const user = ofUser.has(error._tag) || (withReason.has(error._tag) && !ofMachine.has(reasonOf(error.reason)))
  const compiler =
    error._tag === "CompileError" && error.reason !== "SourceRejected" && error.reason !== "MissingKernel"
  return { kind: error._tag, message: error.message, exitCode: user || compiler ? 2 : 1 }
}
