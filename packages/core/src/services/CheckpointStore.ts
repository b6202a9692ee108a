import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { CheckpointError } from "../CheckpointError.ts"
import type { Kind, Manifest, Metric } from "../CheckpointManifest.ts"
import type { DType } from "../DType.ts"

/** A box of a tensor by axis name. An axis without an offset starts at 0; one without a size runs to its end. */
export interface SliceOf {
  readonly offsets?: Readonly<Record<string, number>>
  readonly sizes?: Readonly<Record<string, number>>
}

/** A tensor to save, or one rank's slice of it. */
export interface TensorRecord {
  /** Path of the logical tensor, such as `blocks/attention/query`; unique within its kind. */
  readonly name: string
  readonly kind: Kind
  readonly dtype: DType
  /** Axes of the whole tensor, in the order of the bytes (the last is contiguous). */
  readonly axes: ReadonlyArray<{ readonly name: string; readonly size: number }>
  /** Little-endian bytes of the slice. An Effect runs when its turn to be written comes, so one tensor is in memory. */
  readonly data: Uint8Array | Effect.Effect<Uint8Array, CheckpointError>
  /** What part of the tensor `data` holds; all of it by default. */
  readonly slice?: SliceOf
  /**
   * Names the tensor instead of storing it: it does not change in this run and can be loaded from `source` again. The
   * manifest keeps the hash of its bytes, computed from `data` unless given.
   */
  readonly frozen?: { readonly source: string; readonly sha256?: string }
}

/** What one process contributes: the files it wrote and the slices in them. */
export interface SavedPart {
  readonly tensors: Manifest["tensors"]
  readonly files: Manifest["files"]
}

/** The small state of a checkpoint, stored in its manifest. */
export interface CheckpointState {
  readonly step: number
  /** Any JSON value: data cursor, loss scale, random key, recipe digest, model description. */
  readonly state: Schema.Json
  /** The number by which the best checkpoints are kept. One that is not finite is not recorded. */
  readonly metric?: Metric
}

export interface Checkpoint extends CheckpointState {
  readonly tensors: ReadonlyArray<TensorRecord>
}

export interface SavedCheckpoint {
  readonly path: string
  readonly step: number
  readonly bytes: number
}

/** Which checkpoint to open: the newest valid one, the one of a step, or a folder. */
export type CheckpointRef = "latest" | { readonly step: number } | { readonly path: string }

/** A newer checkpoint that was passed over, and why. */
export interface SkippedCheckpoint {
  readonly path: string
  readonly error: CheckpointError
}

export interface ReadOptions extends SliceOf {
  /** The kind, where tensors of several kinds share the name; a parameter by default. */
  readonly kind?: Kind
  /** The order of the axes of the result, by name; the stored order by default. */
  readonly order?: ReadonlyArray<string>
}

/** An open checkpoint. Its files were checked against the manifest and stay open until the scope closes. */
export interface CheckpointReader {
  readonly path: string
  readonly manifest: Manifest
  /** Newer checkpoints that were damaged; also logged as warnings. */
  readonly skipped: ReadonlyArray<SkippedCheckpoint>
  /** Bytes of a tensor, or of any box of it, whatever slices it was saved in. */
  readonly read: (name: string, options?: ReadOptions) => Effect.Effect<Uint8Array, CheckpointError>
  /** Checks the bytes of a frozen tensor, loaded from elsewhere, against the hash in the manifest. */
  readonly checkFrozen: (name: string, bytes: Uint8Array) => Effect.Effect<void, CheckpointError>
}

export interface ListedCheckpoint {
  readonly path: string
  readonly step: number
  /** Whether the manifest is sound and every file has the length it says; contents are not read. */
  readonly complete: boolean
  readonly bytes: number
  readonly metric?: Metric
}

/**
 * Keeps the checkpoints of a run. A checkpoint appears whole or not at all, whenever the process dies.
 *
 * One process calls `save`. Where every rank writes its own slices, each calls `savePart` with the same step and token
 * (any name they agree on), and after a barrier one of them calls `commit` with all parts.
 */
export class CheckpointStore extends Context.Service<
  CheckpointStore,
  {
    readonly folder: string
    readonly save: (checkpoint: Checkpoint) => Effect.Effect<SavedCheckpoint, CheckpointError>
    readonly savePart: (part: {
      readonly step: number
      readonly token: string
      /** Names this process's files: `rank-0`. */
      readonly part: string
      readonly tensors: ReadonlyArray<TensorRecord>
    }) => Effect.Effect<SavedPart, CheckpointError>
    readonly commit: (
      checkpoint: CheckpointState & { readonly token: string; readonly parts: ReadonlyArray<SavedPart> }
    ) => Effect.Effect<SavedCheckpoint, CheckpointError>
    /**
     * Opens a checkpoint after checking all of its files. `latest` passes over damaged ones with a warning; a step or
     * path that is damaged fails.
     */
    readonly open: (ref: CheckpointRef) => Effect.Effect<CheckpointReader, CheckpointError, Scope.Scope>
    /** All checkpoints, oldest first. */
    readonly list: Effect.Effect<ReadonlyArray<ListedCheckpoint>, CheckpointError>
    /** Reads every byte of a checkpoint and compares it with the manifest. */
    readonly verify: (path: string) => Effect.Effect<Manifest, CheckpointError>
    /** Reads the manifest only. */
    readonly inspect: (path: string) => Effect.Effect<Manifest, CheckpointError>
  }
>()("core/CheckpointStore") {}
