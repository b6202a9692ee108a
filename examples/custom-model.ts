/**
 * A model that is not in @tessera/models, trained on a toy task: an MLP-Mixer (two MLPs in turn, one over places, one over channels) that learns to
 * say which quarter of a picture is the brightest.
 *
 * A model is a record: declarations of parameters, and a pure function of parameters and input. Axes have names, so nothing is transposed.
 *
 * Command: node examples/custom-model.ts
 * @source arXiv:2105.01601, MLP-Mixer
 */
import { Init, Module, Optimizer, Schedule, Tensor as T, Trainer } from "@tessera/core"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Tasks from "@tessera/core/Tasks"
import { CpuBackend } from "@tessera/cpu"
import { Random } from "@tessera/data"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"

const [side, patch, embed, classes, layers] = [8, 2, 16, 4, 2]
const patches = (side / patch) ** 2

type Tokens = T.Tensor<"batch" | "patch" | "embed">
type Image = T.Tensor<"batch" | "row" | "col" | "channel">

/** `[batch, patch, embed] -> [batch, patch, embed]` */
const block = Module.make(
  {
    norm: Module.param({ embed }, Init.ones, { decay: false }),
    mixIn: Module.param({ patch: patches, mix: 2 * patches }, Init.fanIn("patch")),
    mixOut: Module.param({ mix: 2 * patches, patch: patches }, Init.fanIn("mix")),
    mlpIn: Module.param({ embed, mlp: 4 * embed }, Init.fanIn("embed")),
    mlpOut: Module.param({ mlp: 4 * embed, embed }, Init.fanIn("mlp"))
  },
  (p, { value: x }: Module.Layer<"batch" | "patch" | "embed">) => {
    const mixed = T.gelu(T.contract(T.rmsNorm(x, "embed", 1e-6, p.norm), p.mixIn, "patch")) // [batch, embed, mix]
    const y = T.add(x, T.contract(mixed, p.mixOut, "mix"))
    const inner = T.gelu(T.contract(y, p.mlpIn, "embed")) // [batch, patch, mlp]
    return { value: T.add(y, T.contract(inner, p.mlpOut, "mlp")), captured: {} }
  }
)

/** The same block several times: every parameter gets the axis `layers`, and the backward pass is one loop. */
const blocks = Module.stack(block, layers)

const mixer = Module.make(
  {
    embed: Module.param({ patchRow: patch, patchCol: patch, channel: 1, embed }, Init.fanIn("patchRow", "patchCol")),
    blocks: blocks.params,
    head: Module.param({ embed, classes }, Init.zeros)
  },
  (p, image: Image, call) => {
    const rows = T.split(image, "row", { outer: "row", inner: "patchRow", size: patch })
    const grid = T.split(rows, "col", { outer: "col", inner: "patchCol", size: patch })
    const tokens: Tokens = T.merge(T.contract(grid, p.embed, "patchRow", "patchCol", "channel"), "row", "col", "patch")
    const { value } = Module.run(blocks, "blocks", p.blocks, { value: tokens }, call)
    return T.contract(T.mean(value, "patch"), p.head, "embed")
  }
)

const batchSize = 32

/** Noise with one quarter a little brighter. */
const batch = (step: number): Trainer.DataBatch => {
  const images = new Float32Array(batchSize * side * side)
  const labels = new Int32Array(batchSize)
  for (let row = 0; row < batchSize; row++) {
    const random = Random.make(Random.purposes.augment, 1, step, row)
    const label = (labels[row] = random.below(classes))
    for (let i = 0; i < side * side; i++) {
      const quarter = 2 * Math.floor(i / side / (side / 2)) + Math.floor((i % side) / (side / 2))
      images[row * side * side + i] = random.normal() + (quarter === label ? 0.8 : 0)
    }
  }
  const bytes = (array: ArrayBufferView) => new Uint8Array(array.buffer)
  return {
    arrays: {
      images: bytes(images),
      labels: bytes(labels),
      weights: bytes(new Float32Array(batchSize).fill(1)),
      examples: bytes(Uint32Array.from(labels.keys()))
    },
    samples: batchSize,
    skipped: 0,
    epoch: step,
    cursor: step
  }
}

const program = Effect.gen(function* () {
  const task = Tasks.classification(mixer, { batchSize, height: side, width: side, channels: 1, classes })
  console.log(`${Module.count(mixer.params)} parameters:`)
  for (const { param, path } of Module.leaves(mixer.params))
    console.log(`  ${path} [${param.axes.map((a) => `${a.name}=${a.size}`).join(", ")}]`)

  const training = yield* Trainer.make({ ...task, optimizer: Optimizer.make(adamw(), { decay: 0.01 }) })
  yield* Trainer.initialise(training, 1)
  const reports = Trainer.steps(training, {
    run: "mixer",
    data: {
      batches: (from) =>
        Stream.map(
          Stream.iterate(from === null ? 1 : Number(from) + 1, (n) => n + 1),
          batch
        )
    },
    schedule: Schedule.cosine({ base: 1e-2, total: 150, warmup: 10 }),
    totalSteps: 150,
    seed: 1
  })
  yield* reports.pipe(
    Trainer.every(30, ({ accuracy, loss, step }) =>
      Effect.sync(() =>
        console.log(`step ${step}: loss ${loss.toFixed(3)}, accuracy ${(100 * (accuracy ?? 0)).toFixed(0)} %`)
      )
    ),
    Stream.runDrain
  )
})

await Effect.runPromise(
  program.pipe(Effect.scoped, Effect.provide(CpuBackend.layerWith({ threads: 1, onProgress: console.error })))
)
