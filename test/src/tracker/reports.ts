import type { EvaluationReport, StepReport } from "@tessera/core/services/Tracker"
import { Tracker } from "@tessera/core/services/Tracker"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"

export const stepReport = (step: number, over: Partial<StepReport> = {}): StepReport => ({
  run: "vit-mnist",
  step,
  totalSteps: 1000,
  epoch: step / 100,
  loss: 2.3 / Math.sqrt(step),
  learningRate: 3e-4,
  gradientNorm: 1.5,
  accuracy: step / 1000,
  samples: 64,
  seconds: 0.25,
  dataSeconds: 0.05,
  skippedSamples: 0,
  ...over
})

export const evaluationReport = (step: number): EvaluationReport => ({
  run: "vit-mnist",
  step,
  epoch: step / 100,
  name: "validation",
  loss: 0.25,
  accuracy: 0.9721,
  samples: 10_000,
  seconds: 4,
  metrics: { topFive: 0.999 }
})

/** Runs with a tracker and closes it. */
export const withTracker = <E, R, A, E2, R2>(
  layer: Layer.Layer<Tracker, E, R>,
  use: (tracker: Tracker["Service"]) => Effect.Effect<A, E2, R2>
): Effect.Effect<A, E | E2, R | Exclude<R2, Tracker | Scope.Scope>> =>
  Effect.flatMap(Tracker, use).pipe(Effect.scoped, Effect.provide(layer)) as never
