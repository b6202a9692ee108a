/** Whole training steps of small vision transformers: the native backend against the evaluator, several steps, state written in place. */
import * as Axis from "@tessera/core/Axis"
import type * as DType from "@tessera/core/DType"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import * as Module from "@tessera/core/Module"
import * as Optimizer from "@tessera/core/Optimizer"
import * as AdamW from "@tessera/core/optimizers/adamw"
import * as Sgd from "@tessera/core/optimizers/sgd"
import * as Precision from "@tessera/core/Precision"
import type { Buffer } from "@tessera/core/services/Backend"
import { Backend } from "@tessera/core/services/Backend"
import * as Step from "@tessera/core/Step"
import * as Strategy from "@tessera/core/Strategy"
import * as T from "@tessera/core/Tensor"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as fc from "fast-check"
import { describe, expect, it } from "vitest"
import { disagreement } from "./agreement.ts"

const batch = 4
const classes = 5

const modes = {
  f32: Precision.f32,
  bf16: Precision.bf16,
  "bf16-O1": Precision.bf16O1,
  "bf16-full": Precision.bf16Full,
  "all in bf16": Result.getOrThrow(
    Precision.make({ mode: "bf16", norms: "bf16", softmax: "bf16", losses: "bf16", gradients: "bf16" })
  ),
  f16: Precision.f16,
  "f16-full": Precision.f16Full
} as const

interface Case {
  readonly classTokens: 0 | 1 | 8
  readonly dropout: number
  readonly dropPath: number
  readonly dropPatch: number
  readonly heads: number
  readonly headDim: number
  readonly microbatches: 1 | 2 | 4
  readonly recompute: boolean
  readonly precision: keyof typeof modes
  readonly clip: boolean
  readonly optimizer: "adamw" | "sgd"
}

/** f16 cannot hold squares of gradients. */
const isAdamw = (c: Case) => c.optimizer === "adamw" && c.precision !== "f16-full"
const ruleOf = (c: Case) => (isAdamw(c) ? AdamW.adamw({ b2: 0.95 }) : Sgd.sgd({ momentum: 0.9, nesterov: true }))

const cases: fc.Arbitrary<Case> = fc.record({
  classTokens: fc.constantFrom(0, 1, 8),
  dropout: fc.constantFrom(0, 0.2),
  dropPath: fc.constantFrom(0, 0.3),
  dropPatch: fc.constantFrom(0, 0.4),
  heads: fc.constantFrom(1, 2, 3),
  headDim: fc.constantFrom(1, 5, 8),
  microbatches: fc.constantFrom(1, 2, 4),
  recompute: fc.boolean(),
  precision: fc.constantFrom(...(Object.keys(modes) as Array<keyof typeof modes>)),
  clip: fc.boolean(),
  optimizer: fc.constantFrom("adamw", "sgd")
})

const stepOf = (c: Case) => {
  const config = VitConfig.make({
    imageSize: { height: 6, width: 9 },
    patch: 3,
    channels: 2,
    hidden: 6 * c.heads,
    mlp: 11,
    heads: c.heads,
    headDim: c.headDim,
    layers: 2,
    classTokens: c.classTokens,
    pooling: c.classTokens === 0 ? "meanAll" : "token",
    dropout: c.dropout,
    attentionDropout: c.dropout,
    dropPath: c.dropPath,
    dropPatch: c.dropPatch,
    head: { kind: "linear", classes, kernel: "normal", bias: 0 } as never
  })
  const vit = Vit.classifier(config)
  const step = Result.getOrThrow(
    Step.make({
      params: vit.params,
      batch: {
        image: { axes: Axis.list({ batch, row: 6, col: 9, channel: 2 }), dtype: "f32" },
        label: { axes: Axis.list({ batch }), dtype: "i32" },
        examples: { axes: Axis.list({ batch }), dtype: "u32" }
      } as const,
      loss: (params, b, call) => {
        const logits = vit.apply(params, b.image as Vit.Image, call)
        const each = T.softmaxCrossEntropy(logits, b.label as T.Tensor<"batch", "int">, {
          classes: "classes",
          smoothing: 0.1
        })
        return { total: T.sum(each, "batch"), weight: T.constant(batch / c.microbatches) }
      },
      optimizer: Optimizer.make(ruleOf(c), { decay: 0.1, clip: c.clip ? { maxNorm: 0.5, formula: "megatron" } : null }),
      precision: modes[c.precision],
      strategy: {
        ...Strategy.single,
        microbatches: c.microbatches,
        recompute: c.recompute ? { kind: "full" } : { kind: "none" }
      }
    })
  )
  return { params: vit.params, step }
}

/** What storage in a type makes of an array. */
const storedAs = (x: Host.HostArray, dtype: DType.DType): Host.HostArray =>
  Host.fromBytes(x.axes, dtype, Host.toBytes({ ...x, dtype }))

/** Inputs of the first step, in the program's order. */
const firstInputs = (c: Case) => {
  const { params, step } = stepOf(c)
  const leaves = Module.leaves(params)
  const values = Evaluate.runUnsafe(Module.init(params), [Host.scalar(11, "u32")])
  const optimizer = Optimizer.make(ruleOf(c))
  const state = Evaluate.runUnsafe(Optimizer.initial(optimizer, params), [...values])
  const wave = (axes: Axis.Axes) =>
    Host.make(
      axes,
      "f32",
      Array.from({ length: Axis.count(axes) }, (_, i) => Math.fround(Math.sin(i * 1.3)))
    )
  const given = step.program.inputs.length - leaves.length
  const data = [
    wave(Axis.list({ batch, row: 6, col: 9, channel: 2 })),
    Host.make(Axis.list({ batch }), "i32", [0, 4, 2, 1]),
    Host.make(Axis.list({ batch }), "u32", [3, 1, 4, 15])
  ]
  const scalars = [Host.scalar(0.01), Host.scalar(1), Host.scalar(77, "u32"), Host.scalar(1)]
  const held = [...values, ...state.slice(0, given - data.length - scalars.length)]
  const all = [...held.map((x, i) => storedAs(x, step.program.inputs[i]!.type.dtype)), ...data, ...scalars]
  return { step, inputs: all, parameters: leaves.length }
}

/** Euclidean distance of outputs `from` to `to`; to zero when nothing is given to compare with. */
const error = (
  xs: ReadonlyArray<Host.HostArray>,
  ys: ReadonlyArray<Host.HostArray> | null,
  from: number,
  to: number
): number => {
  let total = 0
  for (let i = from; i < to; i++) {
    const x = xs[i]!
    const y = ys === null ? null : Host.reorder(ys[i]!, x.axes)
    for (let k = 0; k < x.data.length; k++) total += (x.data[k]! - (y?.data[k] ?? 0)) ** 2
  }
  return Math.sqrt(total)
}

const threeSteps = (c: Case) =>
  Effect.gen(function* () {
    const { inputs, parameters, step } = firstInputs(c)
    const backend = yield* Backend
    const executable = yield* backend.compile(step.program, { donated: step.donated })
    const buffers: Array<Buffer> = []
    for (const [i, a] of inputs.entries()) {
      const buffer = yield* backend.allocate(step.program.inputs[i]!.type)
      yield* backend.write(buffer, Host.toBytes(Host.reorder(a, buffer.type.axes)))
      buffers.push(buffer)
    }
    const kept = step.donated.length
    const stepAt = inputs.length - 3
    let ideal = inputs
    for (let k = 1; k <= 3; k++) {
      ideal = ideal.map((a, i) => (i === stepAt ? Host.scalar(k) : a))
      yield* backend.write(buffers[stepAt]!, Host.toBytes(ideal[stepAt]!))
      const expected = Evaluate.runUnsafe(step.program, ideal)
      const found = yield* executable.run(buffers)
      const arrays = yield* Effect.forEach(found, (o) =>
        Effect.map(backend.read(o), (bytes) => Host.fromBytes(o.type.axes, o.type.dtype, bytes))
      )
      if (c.precision === "f32") {
        for (const [i, array] of arrays.entries()) {
          // Adam divides by the root of the second moment: where a gradient is only rounding noise (a key's bias), the new parameter is, too.
          if (isAdamw(c) && i < parameters) continue
          const problem = disagreement(expected[i]!, array, [Host.scalar(1)])
          if (problem !== null) return `step ${k}, output ${i}: ${problem}`
        }
      } else {
        // In 16 bits single elements may be noise. As a whole our state is as near to the f32 step as the evaluator's 16-bit one.
        const plain = stepOf({ ...c, optimizer: isAdamw(c) ? "adamw" : "sgd", precision: "f32" }).step.program
        const wide = ideal.map((a, i) => ({ ...a, dtype: plain.inputs[i]!.type.dtype }))
        const exact = Evaluate.runUnsafe(plain, wide)
        const from = isAdamw(c) ? parameters : 0
        const [theirs, ours, size] = [
          error(expected, exact, from, kept),
          error(arrays, exact, from, kept),
          error(exact, null, from, kept)
        ]
        if (ours > 2.5 * theirs + 0.02 * size)
          return `step ${k}: error ${ours} of ${size}, the evaluator's is ${theirs}`
        const loss = disagreement(expected[kept]!, arrays[kept]!, [Host.scalar(1)], 0.05)
        if (loss !== null) return `step ${k}, loss: ${loss}`
      }
      // Go on from the same state on both sides.
      ideal = ideal.map((a, i) => (i < kept ? Host.reorder(expected[i]!, a.axes) : a))
      for (let i = 0; i < kept; i++)
        yield* backend.write(buffers[i]!, Host.toBytes(Host.reorder(ideal[i]!, buffers[i]!.type.axes)))
      ideal = ideal.map((a) => (a.dtype === "f32" ? storedAs(a, "f32") : a))
    }
    return null
  })

describe("training steps on the native backend", () => {
  it("equal the evaluator's", { timeout: 240_000 }, async () => {
    const run = (c: Case) =>
      Effect.runPromise(
        Effect.provide(Effect.scoped(threeSteps(c)), CpuBackend.layerWith({ threads: 2, memory: "guarded" }))
      )
    await fc.assert(
      fc.asyncProperty(cases, async (c) => {
        expect(await run(c)).toBeNull()
      }),
      { numRuns: 16 }
    )
  })
})
