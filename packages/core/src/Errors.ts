import * as Schema from "effect/Schema"

/** Two operands disagree about the size of one axis. */
export class AxisMismatch extends Schema.TaggedClass<AxisMismatch>()("AxisMismatch", {
  operation: Schema.String,
  axis: Schema.String,
  left: Schema.Number,
  right: Schema.Number
}) {
  override toString() {
    return `${this.operation}: axis "${this.axis}" has size ${this.left} in one operand and ${this.right} in another; equal names need equal sizes (rename one of them)`
  }
}

/** An operation names an axis that its operand does not have, or would create one that exists. */
export class UnknownAxis extends Schema.TaggedClass<UnknownAxis>()("UnknownAxis", {
  operation: Schema.String,
  axis: Schema.String,
  present: Schema.Array(Schema.String),
  problem: Schema.String
}) {
  override toString() {
    return `${this.operation}: ${this.problem}: axis "${this.axis}"; the operand has [${this.present.join(", ")}]`
  }
}

export class DTypeMismatch extends Schema.TaggedClass<DTypeMismatch>()("DTypeMismatch", {
  operation: Schema.String,
  expected: Schema.String,
  found: Schema.String
}) {
  override toString() {
    return `${this.operation}: expected ${this.expected}, found ${this.found}; use cast`
  }
}

export class NotDifferentiable extends Schema.TaggedClass<NotDifferentiable>()("NotDifferentiable", {
  operation: Schema.String
}) {
  override toString() {
    return `${this.operation} has no derivative; put stopGradient before it if none is wanted`
  }
}

/** Anything else that makes a program meaningless: a negative size, parameters that contradict each other. */
export class InvalidOperation extends Schema.TaggedClass<InvalidOperation>()("InvalidOperation", {
  operation: Schema.String,
  problem: Schema.String
}) {
  override toString() {
    return `${this.operation}: ${this.problem}`
  }
}

const ProgramReason = Schema.Union([AxisMismatch, UnknownAxis, DTypeMismatch, NotDifferentiable, InvalidOperation])

/** The one error that building a program may throw; `Program.trace` catches it. */
export class ProgramError extends Schema.TaggedError<ProgramError>()("ProgramError", {
  reason: ProgramReason,
  /** Path of the module being applied, such as "encoder/blocks/attention"; empty outside of modules. */
  path: Schema.String,
  /** The caller's source line, when known. */
  source: Schema.String
}) {
  override get message() {
    const where = this.path === "" ? "" : ` in module ${this.path}`
    return `${String(this.reason)}${where}${this.source === "" ? "" : ` (${this.source})`}`
  }
}

/** A recipe or option that is not legal: what, where, and what would be right. */
export class RecipeError extends Schema.TaggedError<RecipeError>()("RecipeError", {
  key: Schema.String,
  problem: Schema.String,
  hint: Schema.String
}) {
  override get message() {
    return `${this.key === "" ? "" : `${this.key}: `}${this.problem}${this.hint === "" ? "" : `; ${this.hint}`}`
  }
}

/** An axis that does not divide over the mesh axes that split it. */
export class Indivisible extends Schema.TaggedClass<Indivisible>()("Indivisible", {
  /** The tensor: the path of a parameter or of a batch leaf, or its axes. */
  tensor: Schema.String,
  axis: Schema.String,
  size: Schema.Number,
  meshAxes: Schema.Array(Schema.String),
  count: Schema.Number
}) {
  override toString() {
    const near = nearestMultiples(this.size, this.count)
    return `axis "${this.axis}" of size ${this.size} in ${this.tensor} does not divide by ${this.count} (mesh axis ${this.meshAxes.join(" x ")}); nearest legal sizes: ${near.join(" or ")}, nearest legal counts: ${nearestDivisors(this.size, this.count).join(" or ")}`
  }
}

/** Ranks and mesh contradict each other, or a strategy names a mesh axis that the mesh lacks. */
export class MeshMismatch extends Schema.TaggedClass<MeshMismatch>()("MeshMismatch", {
  problem: Schema.String,
  hint: Schema.String
}) {
  override toString() {
    return `${this.problem}${this.hint === "" ? "" : `; ${this.hint}`}`
  }
}

/** A tensor would reach a place that cannot take a partial sum, or a result would stay one. */
export class StillOwing extends Schema.TaggedClass<StillOwing>()("StillOwing", {
  tensor: Schema.String,
  meshAxis: Schema.String,
  where: Schema.String
}) {
  override toString() {
    return `${this.tensor} is still a partial ${this.meshAxis === "" ? "sum" : `sum over mesh axis "${this.meshAxis}"`} at ${this.where}; reduce it there, or let the rule tables do it`
  }
}

/** An operation has no rule for what a strategy asks of it. */
export class NoRule extends Schema.TaggedClass<NoRule>()("NoRule", {
  operation: Schema.String,
  problem: Schema.String,
  hint: Schema.String
}) {
  override toString() {
    return `${this.operation}: ${this.problem}${this.hint === "" ? "" : `; ${this.hint}`}`
  }
}

/** A program that a strategy cannot spread over its mesh. Found before anything runs. */
export class PartitionError extends Schema.TaggedError<PartitionError>()("PartitionError", {
  reason: Schema.Union([Indivisible, MeshMismatch, StillOwing, NoRule])
}) {
  override get message() {
    return String(this.reason)
  }
}

/** The two multiples of `count` around `size`. */
const nearestMultiples = (size: number, count: number): ReadonlyArray<number> => {
  const below = Math.floor(size / count) * count
  return below === 0 ? [count] : [below, below + count]
}

/** The divisors of `size` around `count`. */
const nearestDivisors = (size: number, count: number): ReadonlyArray<number> => {
  let [below, above] = [Math.min(size, count - 1), count + 1]
  while (below > 1 && size % below !== 0) below--
  while (above < size && size % above !== 0) above++
  return [...(below >= 1 ? [below] : []), ...(above <= size && size % above === 0 ? [above] : [])]
}

/** A program that a backend cannot compile. */
export class CompileError extends Schema.TaggedError<CompileError>()("CompileError", {
  backend: Schema.String,
  reason: Schema.Literals([
    "MissingKernel",
    "SourceRejected",
    "CompilerMissing",
    "UnsupportedPlatform",
    "MeshMismatch"
  ]),
  detail: Schema.String
}) {
  override get message() {
    return `${this.backend} backend, ${this.reason}: ${this.detail}`
  }
}

export class DeviceError extends Schema.TaggedError<DeviceError>()("DeviceError", {
  backend: Schema.String,
  reason: Schema.Literals(["OutOfMemory", "LaunchFailed", "UsedAfterDonation", "WrongBuffer", "Cancelled"]),
  detail: Schema.String
}) {
  override get message() {
    return `${this.backend} device, ${this.reason}: ${this.detail}`
  }
}

/** Ranks that could not do something together. Every rank that took part, or waits, gets one. */
export class CollectiveError extends Schema.TaggedError<CollectiveError>()("CollectiveError", {
  reason: Schema.Literals(["Timeout", "RankLost", "ShapeDisagreement", "Disagreement", "NoPeers", "Refused"]),
  /** Where it was noticed. */
  rank: Schema.Number,
  /** Which are missing, lost, or brought something else. */
  ranks: Schema.Array(Schema.Number),
  /** `allReduce over "data"`, `receive from rank 2`. */
  collective: Schema.String,
  /** The line of the program of one rank. */
  line: Schema.String,
  detail: Schema.String
}) {
  override get message() {
    const where = this.line === "" ? "" : ` (${this.line})`
    return `${this.collective}, ${this.reason} at rank ${this.rank}: ${this.detail}${where}`
  }
}

export class TrainError extends Schema.TaggedError<TrainError>()("TrainError", {
  reason: Schema.Literals(["LossNotFinite", "NoWeight", "BatchMismatch", "Torn"]),
  step: Schema.Number,
  detail: Schema.String
}) {
  override get message() {
    return `training stopped at step ${this.step}, ${this.reason}: ${this.detail}`
  }
}

type Reason = typeof ProgramReason.Type

/** First stack frame outside of this package: the user's line. */
const callerLine = (): string => {
  const lines = (new Error().stack ?? "").split("\n").slice(1)
  const line = lines.find((l) => !/packages[/\\]core[/\\]src|@tessera[/\\]core/.test(l) && l.includes("at "))
  const found = line === undefined ? null : /\(?(?:file:\/\/)?([^()\s]+:\d+):\d+\)?$/.exec(line)
  return found === null ? "" : found[1]!
}

/** Throws a `ProgramError`; for the tensor surface only. */
export const refuse = (reason: Reason): never => {
  throw new ProgramError({ reason, path: "", source: callerLine() })
}

/** Throws a `ProgramError` of kind `InvalidOperation`. */
export const invalid = (operation: string, problem: string): never =>
  refuse(new InvalidOperation({ operation, problem }))

/** The name in `known` nearest to `name` by edit distance, if any is near enough to be meant. */
export const nearest = (name: string, known: ReadonlyArray<string>): string | null => {
  let best: string | null = null
  let bestDistance = Math.max(2, Math.floor(name.length / 3)) + 1
  for (const candidate of known) {
    const distance = editDistance(name.toLowerCase(), candidate.toLowerCase())
    if (distance < bestDistance) {
      best = candidate
      bestDistance = distance
    }
  }
  return best
}

const editDistance = (a: string, b: string): number => {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)))
    }
    row = next
  }
  return row[b.length]!
}
