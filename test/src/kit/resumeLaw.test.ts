import * as NodeServices from "@effect/platform-node/NodeServices"
import { describe, it } from "@effect/vitest"
import * as DType from "@tessera/core/DType"
import * as Host from "@tessera/core/HostArray"
import * as FileCheckpoints from "@tessera/core/layers/FileCheckpoints"
import * as MemoryCheckpoints from "@tessera/core/layers/MemoryCheckpoints"
import * as ReferenceBackend from "@tessera/core/layers/ReferenceBackend"
import * as Precision from "@tessera/core/Precision"
import { Backend } from "@tessera/core/services/Backend"
import type { TensorRecord } from "@tessera/core/services/CheckpointStore"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import type { ResumeOptions } from "@tessera/core/testing"
import { resumeCounterexample, resumeIsExact } from "@tessera/core/testing"
import * as Trainer from "@tessera/core/Trainer"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import { layered, tagger, towers } from "./models.ts"
import { expectSmall } from "./screen.ts"

/** Checkpoints in a folder that goes with the layer. */
const inFolder = Layer.unwrap(
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    return FileCheckpoints.layer({ folder: yield* fs.makeTempDirectoryScoped({ prefix: "resume-law-" }) })
  })
).pipe(Layer.provide(NodeServices.layer))

describe("training goes on as if it had not stopped", () => {
  it.live.each([layered(0.25), towers, tagger])("$name", (subject) => resumeIsExact(subject))
  it.live("on native kernels, with checkpoints in files", () =>
    resumeIsExact(layered(0.25), { services: Layer.merge(CpuBackend.layerWith({ threads: 1 }), inFolder) })
  )
})

const usual = { save: Trainer.save, restore: Trainer.restore }

/** Restores, and then changes something. */
const restoring = (change: (training: Trainer.Training) => Effect.Effect<unknown, never, Backend>): ResumeOptions => ({
  implementation: {
    ...usual,
    restore: ((training, reader) =>
      Effect.tap(Trainer.restore(training, reader), () => change(training))) as typeof Trainer.restore
  }
})

const position = (change: (position: Trainer.Position) => Trainer.Position) =>
  restoring(({ position: at }) => Ref.update(at, change))

/** A slot of the optimizer begins anew. */
const withoutSlot = restoring(({ runner }) =>
  Effect.gen(function* () {
    const backend = yield* Backend
    const slot = runner.held.find(({ kind, name }) => kind === "optimizer" && name.startsWith("stem/"))!
    yield* Effect.orDie(backend.write(slot.buffer, new Uint8Array(slot.buffer.bytes)))
  })
)

/** Falls in the first step. */
const falling = { ...Precision.f16, lossScale: { ...Precision.lossScale, initial: 2 ** 40, hysteresis: 1 } }

const withoutLossScale = {
  ...position((p) => ({ ...p, lossScale: Precision.initialLossScale(falling) })),
  precisions: [falling]
}

const fromTheBeginning = position((p) => ({ ...p, cursor: null }))

const oneStepTwice = position((p) => ({ ...p, step: p.step - 1 }))

/** A store that keeps f32 in 16 bits. */
const lossy: Layer.Layer<CheckpointStore> = Layer.effect(
  CheckpointStore,
  Effect.gen(function* () {
    const store = yield* CheckpointStore
    const narrow = (record: TensorRecord, bytes: Uint8Array) => {
      if (record.dtype !== "f32") return bytes
      const axes = [{ name: "all", size: bytes.byteLength / 4, logical: bytes.byteLength / 4 }]
      const x = Host.fromBytes(axes, "f32", bytes)
      return Host.toBytes({ ...x, data: x.data.map((v) => DType.store("f16", v)) })
    }
    const tensor = (record: TensorRecord): TensorRecord => {
      const { data } = record
      const rounded = Effect.map(data instanceof Uint8Array ? Effect.succeed(data) : data, (b) => narrow(record, b))
      return { ...record, data: rounded }
    }
    return CheckpointStore.of({
      ...store,
      save: (checkpoint) => store.save({ ...checkpoint, tensors: checkpoint.tensors.map(tensor) })
    })
  })
).pipe(Layer.provide(MemoryCheckpoints.layer))

describe("the law catches", () => {
  const caught = (options: ResumeOptions, ...parts: ReadonlyArray<string>) =>
    Effect.map(resumeCounterexample(layered(0.25), { ...options, seed: 2, runs: 20 }), (found) =>
      expectSmall(found, "batch=2, embed=2, layers=1, mlp=2\n", ...parts)
    )
  it.live("an optimizer slot that is not restored", () => caught(withoutSlot, "stopped after step", "stem/velocity"))
  it.live("a checkpoint in 16 bits", () =>
    caught({ services: Layer.merge(ReferenceBackend.layer, lossy) }, "restored, parameter stem differs")
  )
  it.live("a loss scale that begins anew", () =>
    caught(withoutLossScale, "restored, scale is 1099511627776", "scalars/lossScale")
  )
  it.live("data from the beginning", () => caught(fromTheBeginning, "restored, cursor is null", "batch/"))
  it.live("a step that is done twice", () => caught(oneStepTwice, "restored, step is 0, without a stop 1"))
})
