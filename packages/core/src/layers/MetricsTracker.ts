/**
 * The run as Effect metrics, for whatever reads those: the Prometheus page, or OpenTelemetry by Effect's own layer,
 * which needs no SDK and flushes when its scope closes:
 *
 * ```ts
 * const Telemetry = Otlp.layer({ baseUrl: "http://localhost:4318", resource: { serviceName: "tessera" } }).pipe(
 *   Layer.provide([OtlpSerialization.layerJson, FetchHttpClient.layer]))
 * training.pipe(Effect.provide([MetricsTracker.layer, Telemetry]))
 * ```
 *
 * It posts spans to `/v1/traces`, these metrics to `/v1/metrics` and logs to `/v1/logs`.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import { throughput, Tracker } from "../services/Tracker.ts"

const gauge = (name: string, description: string) => Metric.gauge(name, { description })
const counter = (name: string, description: string) => Metric.counter(name, { description, incremental: true })

/** The metrics, before the label `run` is put on them. */
export const metrics = {
  steps: counter("train_steps", "optimizer steps since the process started"),
  samples: counter("train_samples", "samples trained on since the process started"),
  step: gauge("train_step", "step of the run"),
  loss: gauge("train_loss", "loss of the last step"),
  accuracy: gauge("train_accuracy", "share of right answers in the last step"),
  learningRate: gauge("train_learning_rate", "learning rate of the last step"),
  gradientNorm: gauge("train_gradient_norm", "global gradient norm before clipping"),
  epoch: gauge("train_epoch", "passes over the training set"),
  imagesPerSecond: gauge("train_images_per_second", "samples per second of the last step"),
  dataWait: gauge("train_data_wait_ratio", "share of the last step spent waiting for data"),
  skippedSamples: gauge("train_skipped_samples", "samples that could not be read"),
  lossScale: gauge("train_loss_scale", "scale of the loss in half precision"),
  seconds: Metric.histogram("train_step_seconds", {
    description: "duration of the steps",
    boundaries: Metric.exponentialBoundaries({ start: 0.001, factor: 2, count: 18 })
  })
} as const

/** Keeps the metrics above, labelled with the run, and `eval_loss`, `eval_accuracy`, … with the evaluation's name too. */
export const layer: Layer.Layer<Tracker> = Layer.succeed(
  Tracker,
  Tracker.of({
    report: (report) => {
      const run = { run: report.run }
      const set = (metric: Metric.Metric<number, unknown>, value: number | undefined) =>
        value === undefined ? Effect.void : Metric.update(Metric.withAttributes(metric, run), value)
      return Effect.all(
        [
          set(metrics.steps, 1),
          set(metrics.samples, report.samples),
          set(metrics.step, report.step),
          set(metrics.loss, report.loss),
          set(metrics.accuracy, report.accuracy),
          set(metrics.learningRate, report.learningRate),
          set(metrics.gradientNorm, report.gradientNorm),
          set(metrics.epoch, report.epoch),
          set(metrics.imagesPerSecond, throughput(report)),
          set(metrics.dataWait, report.seconds > 0 ? report.dataSeconds / report.seconds : 0),
          set(metrics.skippedSamples, report.skippedSamples),
          set(metrics.lossScale, report.lossScale),
          set(metrics.seconds, report.seconds)
        ],
        { discard: true }
      )
    },
    evaluation: (report) => {
      const labels = { run: report.run, evaluation: report.name }
      const values = Object.entries({ loss: report.loss, accuracy: report.accuracy, ...report.metrics })
      return Effect.forEach(
        values,
        ([name, value]) =>
          value === undefined
            ? Effect.void
            : Metric.update(
                Metric.withAttributes(gauge(`eval_${name}`, `${name} of the last evaluation`), labels),
                value
              ),
        { discard: true }
      )
    },
    event: (event) =>
      Metric.update(
        Metric.withAttributes(counter("train_events", "events by name"), { run: event.run, event: event.name }),
        1
      )
  })
)
