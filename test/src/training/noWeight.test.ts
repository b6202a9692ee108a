/** A batch in which nothing counts ends training by name, and changes nothing. */
import { assert, it } from "@effect/vitest"
import { TrainError } from "@tessera/core/Errors"
import * as ReferenceBackend from "@tessera/core/layers/ReferenceBackend"
import { Backend } from "@tessera/core/services/Backend"
import * as Trainer from "@tessera/core/Trainer"
import * as Effect from "effect/Effect"
import * as Schedule from "@tessera/core/Schedule"
import * as Stream from "effect/Stream"
import * as Trainings from "../application/trainings.ts"

const sizes: Trainings.Sizes = { batch: 2, hidden: 8, layers: 1 }

/** The usual batches, with all weights 0 from the third on. */
const emptied: Trainer.Data = {
  batches: (from) =>
    Stream.zipWithIndex(Trainings.data(sizes).batches(from)).pipe(
      Stream.map(([batch, i]) =>
        i < 2
          ? batch
          : { ...batch, arrays: { ...batch.arrays, weights: new Uint8Array(batch.arrays["weights"]!.length) } }
      )
    )
}

it.live("a batch of weight 0 is refused", () =>
  Effect.gen(function* () {
    const backend = yield* Backend
    const training = yield* Trainer.make(Trainings.config(sizes))
    yield* Trainer.initialise(training, 1)
    const seen: Array<number> = []
    const held = Effect.forEach(training.runner.held, (h) =>
      Effect.map(backend.read(h.buffer), (bytes) => Array.from(bytes))
    )
    let before = yield* held
    const error = yield* Trainer.steps(training, {
      run: "empty",
      data: emptied,
      schedule: Schedule.constant(1e-3),
      totalSteps: 5,
      seed: 1
    }).pipe(
      Stream.runForEach(({ step }) =>
        Effect.gen(function* () {
          seen.push(step)
          before = yield* held
        })
      ),
      Effect.flip
    )
    assert.deepStrictEqual(seen, [1, 2])
    assert.isTrue(error instanceof TrainError && error.reason === "NoWeight" && error.step === 3)
    assert.deepStrictEqual(yield* held, before)
  }).pipe(Effect.scoped, Effect.provide(ReferenceBackend.layer))
)
