/** Trackers from trackers. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import { Tracker } from "../services/Tracker.ts"

/** Reports to all of them, in order. None of them is no tracker at all: see `silent`. */
export const combine = <E, R>(layers: ReadonlyArray<Layer.Layer<Tracker, E, R>>): Layer.Layer<Tracker, E, R> =>
  Layer.effect(
    Tracker,
    Effect.gen(function* () {
      const trackers: Array<Tracker["Service"]> = []
      for (const layer of layers) trackers.push(Context.get(yield* Layer.build(layer), Tracker))
      return Tracker.of({
        report: (report) => Effect.forEach(trackers, (tracker) => tracker.report(report), { discard: true }),
        evaluation: (report) => Effect.forEach(trackers, (tracker) => tracker.evaluation(report), { discard: true }),
        event: (event) => Effect.forEach(trackers, (tracker) => tracker.event(event), { discard: true })
      })
    })
  )

/** Reports to nobody. */
export const silent: Layer.Layer<Tracker> = Layer.succeed(
  Tracker,
  Tracker.of({ report: () => Effect.void, evaluation: () => Effect.void, event: () => Effect.void })
)

/** Turns the first failure into a warning and the later ones into nothing: a full disk must not end a run. */
export const warnOnce = Effect.fnUntraced(function* (tracker: string) {
  const warned = yield* Ref.make(false)
  return <E extends { readonly message: string }, R>(
    effect: Effect.Effect<unknown, E, R>
  ): Effect.Effect<void, never, R> =>
    Effect.asVoid(effect).pipe(
      Effect.catch((error: E) =>
        Effect.flatMap(Ref.getAndSet(warned, true), (before) =>
          before ? Effect.void : Effect.logWarning(`${tracker} lost a report and may lose more: ${error.message}`)
        )
      )
    )
})
