/** Saves checkpoints without end, to be killed: `node saveForever.ts FOLDER`. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as FileCheckpoints from "@tessera/core/layers/FileCheckpoints"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { checkpointOf } from "./samples.ts"

const folder = process.argv[2]!

const program = Effect.gen(function* () {
  const store = yield* CheckpointStore
  const before = yield* store.list
  for (let step = (before.at(-1)?.step ?? 0) + 1; ; step++) {
    yield* store.save(checkpointOf(step))
    yield* Effect.sync(() => process.stdout.write(`${step}\n`))
  }
})

void Effect.runPromise(
  Effect.provide(program, FileCheckpoints.layer({ folder, keepLast: 1 }).pipe(Layer.provide(NodeFileSystem.layer)))
)
