import * as Schema from "effect/Schema"

/** There is no such checkpoint, or no tensor of that name in it. */
export class NotFound extends Schema.TaggedClass<NotFound>()("NotFound", {
  wanted: Schema.String,
  hint: Schema.String
}) {
  override toString() {
    return `${this.wanted} was not found${this.hint === "" ? "" : `; ${this.hint}`}`
  }
}

/** A name that one side lacks, with the most similar name of the other side. */
const Missing = Schema.Struct({ name: Schema.String, nearest: Schema.optionalKey(Schema.String) })

/** A tensor that both sides have, in different forms, such as `f32 [embed 64]`. */
const Differing = Schema.Struct({ name: Schema.String, expected: Schema.String, found: Schema.String })

/** The checkpoint belongs to another model: names are missing or left over, or shapes or types differ. */
export class ManifestMismatch extends Schema.TaggedClass<ManifestMismatch>()("ManifestMismatch", {
  missing: Schema.Array(Missing),
  unexpected: Schema.Array(Schema.String),
  differing: Schema.Array(Differing)
}) {
  override toString() {
    const shown = 5
    const list = <A>(title: string, all: ReadonlyArray<A>, line: (one: A) => string) =>
      all.length === 0
        ? []
        : [
            `${all.length} ${title}: ${all.slice(0, shown).map(line).join("; ")}${all.length > shown ? "; and more" : ""}`
          ]
    return [
      "the checkpoint belongs to another model",
      ...list(
        "missing",
        this.missing,
        (m) => m.name + (m.nearest === undefined ? "" : ` (nearest in the checkpoint: ${m.nearest})`)
      ),
      ...list("unexpected", this.unexpected, (name) => name),
      ...list("different", this.differing, (d) => `${d.name} is ${d.found}, the model expects ${d.expected}`)
    ].join("\n  ")
  }
}

/** Written by a version that this one cannot read. */
export class VersionMismatch extends Schema.TaggedClass<VersionMismatch>()("VersionMismatch", {
  found: Schema.Number,
  supported: Schema.Number,
  writtenBy: Schema.String
}) {
  override toString() {
    return `the checkpoint has format version ${this.found} (written by Tessera ${this.writtenBy}), this Tessera reads version ${this.supported}; use a version of Tessera that reads it`
  }
}

/** Bytes are not those that were written: a flipped bit, another file under the same name. */
export class ChecksumMismatch extends Schema.TaggedClass<ChecksumMismatch>()("ChecksumMismatch", {
  file: Schema.String,
  expected: Schema.String,
  found: Schema.String
}) {
  override toString() {
    return `${this.file} is damaged: its sha256 is ${this.found}, the manifest says ${this.expected}`
  }
}

/** A file is missing, shorter or longer than the manifest says, or the manifest itself breaks off. */
export class Truncated extends Schema.TaggedClass<Truncated>()("Truncated", {
  file: Schema.String,
  detail: Schema.String
}) {
  override toString() {
    return `${this.file} is incomplete: ${this.detail}`
  }
}

/** The checkpoint could not be written; what was there before is untouched. */
export class WriteFailed extends Schema.TaggedClass<WriteFailed>()("WriteFailed", {
  folder: Schema.String,
  detail: Schema.String,
  bytesNeeded: Schema.optionalKey(Schema.Number)
}) {
  override toString() {
    const needed = this.bytesNeeded === undefined ? "" : ` (the checkpoint needs ${this.bytesNeeded} bytes)`
    return `writing to ${this.folder} failed: ${this.detail}${needed}; earlier checkpoints are untouched`
  }
}

/** The caller asked to store something that is no consistent checkpoint. */
export class InvalidCheckpoint extends Schema.TaggedClass<InvalidCheckpoint>()("InvalidCheckpoint", {
  what: Schema.String,
  detail: Schema.String
}) {
  override toString() {
    return `${this.what}: ${this.detail}`
  }
}

/** The operating system refused a read. */
export class ReadFailed extends Schema.TaggedClass<ReadFailed>()("ReadFailed", {
  file: Schema.String,
  detail: Schema.String
}) {
  override toString() {
    return `${this.file} cannot be read: ${this.detail}`
  }
}

export const Reason = Schema.Union([
  NotFound,
  ManifestMismatch,
  VersionMismatch,
  ChecksumMismatch,
  Truncated,
  WriteFailed,
  InvalidCheckpoint,
  ReadFailed
])

/** Everything that saving and opening checkpoints may fail with. */
export class CheckpointError extends Schema.TaggedError<CheckpointError>()("CheckpointError", {
  /** The checkpoint's folder, or the store's where no checkpoint is meant. */
  path: Schema.String,
  reason: Reason
}) {
  override get message() {
    return `checkpoint ${this.path}: ${String(this.reason)}`
  }
}
