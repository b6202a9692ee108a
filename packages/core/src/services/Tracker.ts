import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

/** What one optimizer step did. */
export interface StepReport {
  readonly run: string
  /** Steps done, this one included: the first report says 1. */
  readonly step: number
  readonly totalSteps: number
  /** Passes over the training set, with a fraction. */
  readonly epoch: number
  readonly loss: number
  readonly learningRate: number
  /** Global norm of the gradients before clipping. */
  readonly gradientNorm: number
  /** Share of the samples of this step that were right, 0 to 1. */
  readonly accuracy?: number
  /** Samples in this step, over all ranks. */
  readonly samples: number
  /** Duration of the step, in seconds of wall time. */
  readonly seconds: number
  /** The part of `seconds` that was spent waiting for data. */
  readonly dataSeconds: number
  /** Samples that could not be read and were passed over, since the run began. */
  readonly skippedSamples: number
  readonly lossScale?: number
}

/** The result of an evaluation on data that is not trained on. */
export interface EvaluationReport {
  readonly run: string
  readonly step: number
  readonly epoch: number
  /** What was evaluated: `validation`, `retrieval`. */
  readonly name: string
  readonly loss?: number
  /** Share of right answers, 0 to 1. */
  readonly accuracy?: number
  readonly samples: number
  readonly seconds: number
  /** Further numbers by name, such as `recallAt5`. */
  readonly metrics?: Readonly<Record<string, number>>
}

/** Anything else worth a line: a checkpoint saved, a step skipped, a rank lost. */
export interface TrackerEvent {
  readonly run: string
  readonly step: number
  readonly name: string
  readonly message: string
  readonly data?: Schema.Json
}

/** A tracker that cannot be opened: its file or folder refuses. */
export class TrackerError extends Schema.TaggedError<TrackerError>()("TrackerError", {
  tracker: Schema.String,
  path: Schema.String,
  detail: Schema.String
}) {
  override get message() {
    return `${this.tracker} cannot write ${this.path}: ${this.detail}`
  }
}

/**
 * Where a run reports to. Reporting never fails the run: a tracker that can no longer write says so once, as a warning.
 * Trackers flush and close with their scope.
 */
export class Tracker extends Context.Service<
  Tracker,
  {
    readonly report: (report: StepReport) => Effect.Effect<void>
    readonly evaluation: (report: EvaluationReport) => Effect.Effect<void>
    readonly event: (event: TrackerEvent) => Effect.Effect<void>
  }
>()("core/Tracker") {}

/** Images per second of a step. */
export const throughput = (report: { readonly samples: number; readonly seconds: number }): number =>
  report.seconds > 0 ? report.samples / report.seconds : 0

/** The numbers of a step as name and value: the series that every tracker shows, under the same names. */
export const stepSeries = (report: StepReport): ReadonlyArray<readonly [name: string, value: number]> => [
  ["loss", report.loss],
  ...(report.accuracy === undefined ? [] : [["accuracy", report.accuracy] as const]),
  ["learning_rate", report.learningRate],
  ["gradient_norm", report.gradientNorm],
  ["epoch", report.epoch],
  ["images_per_second", throughput(report)],
  ["data_wait", report.seconds > 0 ? report.dataSeconds / report.seconds : 0],
  ["skipped_samples", report.skippedSamples],
  ...(report.lossScale === undefined ? [] : [["loss_scale", report.lossScale] as const])
]

/** The numbers of an evaluation as name and value. */
export const evaluationSeries = (report: EvaluationReport): ReadonlyArray<readonly [name: string, value: number]> => [
  ...(report.loss === undefined ? [] : [["loss", report.loss] as const]),
  ...(report.accuracy === undefined ? [] : [["accuracy", report.accuracy] as const]),
  ["images_per_second", throughput(report)],
  ...Object.entries(report.metrics ?? {})
]
