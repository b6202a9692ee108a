/**
 * Where the time of a training step goes: compiles the step of a small vision transformer, runs it with a profile and sums by kernel.
 *
 * Command: node examples/profile.ts
 */
import { Backend, HostArray, Optimizer, Step } from "@tessera/core"
import type { Buffer } from "@tessera/core"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Tasks from "@tessera/core/Tasks"
import { CpuBackend } from "@tessera/cpu"
import { Presets, Vit } from "@tessera/models"
import * as Effect from "effect/Effect"

const program = Effect.gen(function* () {
  const backend = yield* Backend
  const config = Presets.get("mnist-tiny")
  const task = Tasks.classification(Vit.classifier(config), {
    batchSize: 64,
    height: 28,
    width: 28,
    channels: 1,
    classes: 10
  })
  const step = yield* Effect.fromResult(Step.make({ ...task, optimizer: Optimizer.make(adamw()) }))
  const executable = yield* backend.compile(step.program, { donated: step.donated })

  // Contents do not matter for the time: zeros everywhere, 1 for the loss scale and the step.
  const inputs: Array<Buffer> = []
  for (const { type } of step.program.inputs) {
    const buffer = yield* backend.allocate(type)
    const scalar = type.axes.length === 0
    yield* backend.write(
      buffer,
      scalar ? HostArray.toBytes(HostArray.scalar(1, type.dtype)) : new Uint8Array(buffer.bytes)
    )
    inputs.push(buffer)
  }
  yield* executable.run(inputs)
  const profile = yield* executable.profile(inputs)

  const byKernel = new Map<string, { count: number; nanoseconds: number }>()
  for (const { equation, nanoseconds } of profile) {
    const name = equation.primitive.name === "fused" ? `fused ${equation.params.pattern}` : equation.primitive.name
    const known = byKernel.get(name) ?? { count: 0, nanoseconds: 0 }
    byKernel.set(name, { count: known.count + 1, nanoseconds: known.nanoseconds + nanoseconds })
  }
  const total = profile.reduce((sum, { nanoseconds }) => sum + nanoseconds, 0)
  console.log(backend.description)
  console.log(
    `${executable.launches} kernels, ${(executable.cost.contractionFlops / 1e9).toFixed(2)} GFLOP in contractions, ` +
      `${(executable.arenaBytes / 2 ** 20).toFixed(1)} MiB of intermediates, ${(total / 1e6).toFixed(1)} ms`
  )
  for (const [name, { count, nanoseconds }] of [...byKernel]
    .toSorted(([, a], [, b]) => b.nanoseconds - a.nanoseconds)
    .slice(0, 8))
    console.log(`${((100 * nanoseconds) / total).toFixed(1).padStart(5)} %  ${String(count).padStart(4)} x ${name}`)
})

await Effect.runPromise(
  program.pipe(Effect.scoped, Effect.provide(CpuBackend.layerWith({ threads: 1, onProgress: console.error })))
)
