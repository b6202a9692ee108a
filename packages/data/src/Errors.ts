/** Every way in which data can be wrong. One error type, `DataError`, whose tagged `reason` says which. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

/** A shard, archive or folder is not there, is empty, or cannot be read. */
export class ShardUnavailable extends Schema.TaggedError<ShardUnavailable>()("ShardUnavailable", {
  file: Schema.String,
  found: Schema.String,
  expected: Schema.String
}) {
  override get message() {
    return `${this.file}: ${this.found}; expected ${this.expected}`
  }
}

/** A tar archive is cut off or damaged at byte `offset`. */
export class TarCorrupt extends Schema.TaggedError<TarCorrupt>()("TarCorrupt", {
  file: Schema.String,
  offset: Schema.Finite,
  expected: Schema.String,
  found: Schema.String
}) {
  override get message() {
    return `${this.file}: corrupt archive at byte ${this.offset}: expected ${this.expected}, found ${this.found}`
  }
}

/** The bytes of one image cannot be decoded. */
export class DecodeFailed extends Schema.TaggedError<DecodeFailed>()("DecodeFailed", {
  file: Schema.String,
  key: Schema.String,
  found: Schema.String
}) {
  override get message() {
    return `${this.file}: sample "${this.key}" does not decode: ${this.found}; expected a whole JPEG, PNG or WebP image (replace the file, or load with onBadSample: "skip")`
  }
}

/** A sample of a shard lacks a component. DALI calls this an underful sample. */
export class MissingComponent extends Schema.TaggedError<MissingComponent>()("MissingComponent", {
  shard: Schema.String,
  sample: Schema.String,
  expected: Schema.Array(Schema.String),
  present: Schema.Array(Schema.String)
}) {
  override get message() {
    return `${this.shard}: Underful sample detected: "${this.sample}" has no ${this.expected.join(" or ")} component; present: ${this.present.join(", ") || "none"}`
  }
}

/** A label is not an integer in `[0, classes)`. `label` is the text that was found. */
export class LabelOutOfRange extends Schema.TaggedError<LabelOutOfRange>()("LabelOutOfRange", {
  file: Schema.String,
  key: Schema.String,
  label: Schema.String,
  classes: Schema.NullOr(Schema.Int)
}) {
  override get message() {
    const legal =
      this.classes === null
        ? "a whole number from 0"
        : `a whole number from 0 to ${this.classes - 1} (${this.classes} classes)`
    return `${this.file}: sample "${this.key}" has label ${JSON.stringify(this.label)}; expected ${legal}`
  }
}

/** A sample of a source that is used for classification has no label. */
export class LabelMissing extends Schema.TaggedError<LabelMissing>()("LabelMissing", {
  file: Schema.String,
  key: Schema.String
}) {
  override get message() {
    return `${this.file}: sample "${this.key}" has no label; expected a .cls component with a whole number`
  }
}

/** Nothing to read: no shard, no sample, no class. */
export class EmptySource extends Schema.TaggedError<EmptySource>()("EmptySource", {
  source: Schema.String,
  expected: Schema.String
}) {
  override get message() {
    return `${this.source} holds no samples; expected ${this.expected}`
  }
}

/** A DALI index file or an idx (MNIST) file breaks its format. */
export class IndexInvalid extends Schema.TaggedError<IndexInvalid>()("IndexInvalid", {
  file: Schema.String,
  line: Schema.NullOr(Schema.Int),
  details: Schema.String
}) {
  override get message() {
    return this.line === null
      ? `${this.file}: ${this.details}`
      : `Malformed index file at "${this.file}" line ${this.line} - ${this.details}`
  }
}

/** A cursor belongs to other data: resuming would silently train on something else. */
export class CursorMismatch extends Schema.TaggedError<CursorMismatch>()("CursorMismatch", {
  source: Schema.String,
  field: Schema.String,
  expected: Schema.String,
  found: Schema.String
}) {
  override get message() {
    return `cannot resume on ${this.source}: the cursor has ${this.field} ${this.found}, this source has ${this.expected}; resume with the data the run started on, or start a new run`
  }
}

/** Images of one batch must have the pipeline's shape. Sizes are `height x width x channels`. */
export class ShapeMismatch extends Schema.TaggedError<ShapeMismatch>()("ShapeMismatch", {
  file: Schema.String,
  key: Schema.String,
  expected: Schema.String,
  found: Schema.String
}) {
  override get message() {
    return `${this.file}: sample "${this.key}" is ${this.found} after the pipeline's operations, expected ${this.expected}; end the pipeline with a resize or a crop to that size`
  }
}

/** A request that no data could satisfy: an unknown source form, a batch larger than the data, a bad option. */
export class BadRequest extends Schema.TaggedError<BadRequest>()("BadRequest", {
  what: Schema.String,
  found: Schema.String,
  expected: Schema.String
}) {
  override get message() {
    return `${this.what} is ${this.found}; expected ${this.expected}`
  }
}

/** A worker thread died or could not be started. */
export class WorkerFailed extends Schema.TaggedError<WorkerFailed>()("WorkerFailed", {
  worker: Schema.String,
  found: Schema.String
}) {
  override get message() {
    return `worker thread ${this.worker} failed: ${this.found}; the run cannot go on with it (without threads: Augmenter.layerNative)`
  }
}

export const Reason = Schema.Union([
  ShardUnavailable,
  TarCorrupt,
  DecodeFailed,
  MissingComponent,
  LabelOutOfRange,
  LabelMissing,
  EmptySource,
  IndexInvalid,
  CursorMismatch,
  ShapeMismatch,
  BadRequest,
  WorkerFailed
])
export type Reason = typeof Reason.Type

/** The only error of this package. Its message is its reason's; `Effect.catchReason("DataError", ...)` tells them apart. */
export class DataError extends Schema.TaggedError<DataError>()("DataError", { reason: Reason }) {
  override get message() {
    return this.reason.message
  }
}

/** Fails with a reason. */
export const fail = (reason: Reason): Effect.Effect<never, DataError> => Effect.fail(new DataError({ reason }))

/** The text of anything thrown. */
export const textOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))

/** Runs a promise of node:fs or the like on `file`; a rejection becomes `ShardUnavailable`. */
export const reading = <A>(file: string, expected: string, run: () => Promise<A>): Effect.Effect<A, DataError> =>
  Effect.tryPromise({
    try: run,
    catch: (cause) =>
      new DataError({ reason: new ShardUnavailable({ file, expected, found: describeSystemError(cause) }) })
  })

const describeSystemError = (cause: unknown): string => {
  const code = cause instanceof Error && "code" in cause ? String(cause.code) : ""
  return code === "ENOENT" ? "no such file" : code === "EACCES" ? "permission denied" : textOf(cause)
}
