/**
 * One JSON object per line in a file, for programs to read: `{"kind":"step","time":…,"step":1,"loss":…}`.
 * Each line is written whole and at once, so a killed process leaves at most a torn last line.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import type { PlatformError } from "effect/PlatformError"
import * as Result from "effect/Result"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import type { EvaluationReport, StepReport, TrackerEvent } from "../services/Tracker.ts"
import { Tracker, TrackerError } from "../services/Tracker.ts"
import { warnOnce } from "./Trackers.ts"

/** A line of the file. `time` is in milliseconds since 1970. */
export type Line =
  | ({ readonly kind: "step"; readonly time: number } & StepReport)
  | ({ readonly kind: "evaluation"; readonly time: number } & EvaluationReport)
  | ({ readonly kind: "event"; readonly time: number } & TrackerEvent)

export interface JsonlOptions {
  readonly file: string
  /** The run goes on after this step: lines of later steps, written by the stopped process, are dropped. */
  readonly resumedStep?: number
}

/** Numbers that JSON lacks: a loss that diverged must stay visible. */
const special: Readonly<Record<string, number>> = { NaN, Infinity, "-Infinity": -Infinity }

/** A line's text, with its line feed. */
export const encodeLine = (line: Line): string =>
  `${JSON.stringify(line, (_, value: unknown) => (typeof value === "number" && !Number.isFinite(value) ? { number: String(value) } : value))}\n`

/** The line that a text holds, or `undefined` where it is torn or something else. */
export const decodeLine = (text: string): Line | undefined => {
  const revive = (_: string, part: unknown) =>
    typeof part === "object" && part !== null && "number" in part && Object.hasOwn(special, String(part.number))
      ? special[String(part.number)]
      : part
  const value = Result.getOrUndefined(Result.try(() => JSON.parse(text, revive) as unknown))
  if (typeof value !== "object" || value === null || !("kind" in value) || !("step" in value)) return undefined
  return typeof value.step === "number" ? (value as Line) : undefined
}

/** All whole lines of a file, as a stream. */
export const readLines = (fs: FileSystem.FileSystem, file: string): Stream.Stream<Line, PlatformError> =>
  fs.stream(file).pipe(
    Stream.decodeText,
    Stream.splitLines,
    Stream.map(decodeLine),
    Stream.filter((line) => line !== undefined)
  )

/** Rewrites the file without torn lines and without those of steps after `resumedStep`. */
const repair = Effect.fnUntraced(function* (fs: FileSystem.FileSystem, { file, resumedStep }: JsonlOptions) {
  const kept = readLines(fs, file).pipe(
    Stream.filter((line) => resumedStep === undefined || line.step <= resumedStep),
    Stream.map(encodeLine),
    Stream.encodeText
  )
  const beside = `${file}.repaired`
  yield* Effect.scoped(
    Effect.gen(function* () {
      const out = yield* fs.open(beside, { flag: "w" })
      yield* Stream.runForEach(kept, (bytes) => out.writeAll(bytes))
      yield* out.sync
    })
  )
  yield* fs.rename(beside, file)
})

const make = Effect.fnUntraced(function* (options: JsonlOptions) {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const { file } = options
  const out = yield* Effect.gen(function* () {
    yield* fs.makeDirectory(path.dirname(file), { recursive: true })
    if (yield* fs.exists(file)) yield* repair(fs, options)
    return yield* fs.open(file, { flag: "a" })
  }).pipe(
    Effect.mapError((error) => new TrackerError({ tracker: "the metrics file", path: file, detail: error.message }))
  )
  const turn = yield* Semaphore.make(1)
  const guarded = yield* warnOnce(`the metrics file ${file}`)
  const write = (line: (time: number) => Line, flush: boolean) =>
    Effect.gen(function* () {
      const text = encodeLine(line(yield* Clock.currentTimeMillis))
      yield* out.writeAll(new TextEncoder().encode(text))
      if (flush) yield* out.sync
    }).pipe(turn.withPermit, guarded)
  yield* Effect.addFinalizer(() => guarded(out.sync))
  return Tracker.of({
    report: (report) => write((time) => ({ kind: "step", time, ...report }), false),
    evaluation: (report) => write((time) => ({ kind: "evaluation", time, ...report }), true),
    event: (event) => write((time) => ({ kind: "event", time, ...event }), true)
  })
})

/** Appends to `metrics.jsonl`; after a resume it first drops what came after the resumed step. */
export const layer = (options: JsonlOptions): Layer.Layer<Tracker, TrackerError, FileSystem.FileSystem | Path.Path> =>
  Layer.effect(Tracker, make(options))
