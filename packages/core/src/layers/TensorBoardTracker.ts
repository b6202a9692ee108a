/** Event files for TensorBoard: `tensorboard --logdir FOLDER` shows the run while it goes on. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import * as TensorBoard from "../TensorBoard.ts"
import { evaluationSeries, stepSeries, Tracker, TrackerError } from "../services/Tracker.ts"
import { warnOnce } from "./Trackers.ts"

export interface TensorBoardOptions {
  readonly folder: string
  /** The run goes on after this step: TensorBoard is told to forget later ones. */
  readonly resumedStep?: number
}

const make = Effect.fnUntraced(function* ({ folder, resumedStep }: TensorBoardOptions) {
  const fs = yield* FileSystem.FileSystem
  const now = Effect.map(Clock.currentTimeMillis, (millis) => millis / 1000)
  const opened = yield* now
  const name = `events.out.tfevents.${String(Math.floor(opened)).padStart(10, "0")}.tessera.${process.pid}`
  const open = Effect.gen(function* () {
    yield* fs.makeDirectory(folder, { recursive: true })
    // Two processes of one second and number (in containers) get two files: readers show both.
    for (let again = 0; ; again++) {
      const path = `${folder}/${name}.${again}`
      if (!(yield* fs.exists(path))) return yield* fs.open(path, { flag: "wx" })
    }
  })
  const out = yield* open.pipe(
    Effect.mapError((error) => new TrackerError({ tracker: "TensorBoard", path: folder, detail: error.message }))
  )
  const turn = yield* Semaphore.make(1)
  const guarded = yield* warnOnce(`the TensorBoard files in ${folder}`)
  const write = (event: Omit<TensorBoard.Event, "wallTime">) =>
    Effect.flatMap(now, (wallTime) =>
      out.writeAll(TensorBoard.encodeRecord(TensorBoard.encodeEvent({ wallTime, ...event })))
    ).pipe(turn.withPermit, guarded)
  const scalars = (prefix: string, series: ReadonlyArray<readonly [string, number]>) =>
    series.map(([tag, value]) => ({ tag: `${prefix}/${tag}`, value }))
  yield* write({ step: 0, fileVersion: TensorBoard.fileVersion })
  if (resumedStep !== undefined) yield* write({ step: resumedStep + 1, start: true })
  yield* Effect.addFinalizer(() => guarded(out.sync))
  return Tracker.of({
    report: (report) => write({ step: report.step, scalars: scalars("train", stepSeries(report)) }),
    evaluation: (report) => write({ step: report.step, scalars: scalars(report.name, evaluationSeries(report)) }),
    event: () => Effect.void
  })
})

/** Writes the scalars of steps (`train/loss`, …) and evaluations (`validation/accuracy`, …). Events are not shown. */
export const layer = (options: TensorBoardOptions): Layer.Layer<Tracker, TrackerError, FileSystem.FileSystem> =>
  Layer.effect(Tracker, make(options))
