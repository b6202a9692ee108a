/**
 * What the ranks of ViT-B/16 do together in one step: the numbers of collectives are pinned, their bytes follow from the textbook's formulas.
 * @source arXiv:1910.02054, section 7 (ZeRO), arXiv:2304.11277 (FSDP), arXiv:1909.08053, section 3 (tensor), arXiv:2205.05198, section 4.2 (sequence)
 */
import * as Distribute from "@tessera/core/Distribute"
import * as Module from "@tessera/core/Module"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import { timeline } from "@tessera/core/pipeline/Ticks"
import type { Choices } from "@tessera/core/Strategy"
import * as Strategy from "@tessera/core/Strategy"
import * as Tasks from "@tessera/core/Tasks"
import * as Traffic from "@tessera/core/Traffic"
import * as Presets from "@tessera/models/presets"
import * as Vit from "@tessera/models/Vit"
import * as Result from "effect/Result"
import { describe, expect, it } from "vitest"

const model = Presets.nemoPretrain(Presets.get("B/16"))
const batchSize = 64
const task = Tasks.classification(Vit.classifier(model), {
  batchSize,
  height: 224,
  width: 224,
  channels: 3,
  classes: 1000
})
const layers = 12

const distribute = (choices: Choices) =>
  Result.getOrThrow(Distribute.step({ ...task, optimizer: Optimizer.make(adamw()), strategy: Strategy.make(choices) }))

/** Bytes by "collective over mesh axis, what", and how many times. Sums of numbers apart. */
const traffic = (choices: Choices, stage = 0) => {
  const lines = Traffic.of(distribute(choices), stage).filter((t) => t.what !== "numbers")
  const of = (collective: string, what?: Traffic.Traffic["what"]) => {
    const found = lines.filter((t) => t.collective === collective && (what === undefined || t.what === what))
    return { times: found.reduce((n, t) => n + t.count, 0), bytes: found.reduce((n, t) => n + t.bytes, 0) }
  }
  return { of, bytes: lines.reduce((n, t) => n + t.bytes, 0), lines }
}

const P = Vit.parameterCount(model)
const leaves = Module.leaves(task.params)
const elements = (leaf: Module.Leaf) => leaf.param.axes.reduce((n, a) => n * a.size, 1)
/** Parameters of the layers, and the rest. */
const inLayers = leaves
  .filter((l) => l.param.axes.some((a) => a.name === "layers"))
  .reduce((n, l) => n + elements(l), 0)
const d = 8
const share = (d - 1) / d
const data = { mesh: [["data", d]] } as const

it("counts the model's parameters", () => {
  expect(leaves.reduce((n, l) => n + elements(l), 0)).toBe(P)
  expect(P).toBe(87_169_000)
})

describe("data parallelism over d ranks sends, of 4 bytes a parameter,", () => {
  it("2 (d - 1) / d for one all-reduce of all gradients", () => {
    const { bytes, lines } = traffic(data)
    expect(lines.map((t) => t.collective)).toEqual(["allReduce"])
    expect(bytes).toBe(2 * share * 4 * P)
  })

  it.each([1, 2] as const)("the same under ZeRO %i: a scatter of gradients, a gather of new parameters", (zero) => {
    const t = traffic({ ...data, zero })
    expect(t.bytes).toBe(2 * share * 4 * P)
    // What has no axis to split (a few biases) stays whole and is all-reduced.
    const whole = leaves.filter((l) => !l.param.axes.some((a) => a.name === "embed"))
    const small = whole.reduce((n, l) => n + elements(l), 0)
    expect(t.of("allReduce").bytes).toBe(2 * share * 4 * small)
    expect(t.of("reduceScatter").bytes).toBe(share * 4 * (P - small))
    expect(t.of("allGather").bytes).toBe(share * 4 * (P - small))
    expect(t.of("allGather", "parameter").times).toBe(1)
  })

  it("3 (d - 1) / d for parameters of layers under ZeRO 3 and FSDP, which gather twice; 2 (d - 1) / d for the rest", () => {
    const fsdp = traffic({ ...data, fsdp: {} })
    expect(fsdp.bytes).toBe(share * 4 * (3 * inLayers + 2 * (P - inLayers)))
    // One gather for each layer, forward and backward, one for the rest; one scatter for each layer, two for the rest.
    expect(fsdp.of("allGather", "gathered").times).toBe(2 * layers + 1)
    expect(fsdp.of("reduceScatter", "gradient").times).toBe(layers + 2)
    const split = leaves.filter((l) => l.param.axes.some((a) => a.name === "embed"))
    const dealt = split.reduce((n, l) => n + elements(l), 0)
    const dealtInLayers = split
      .filter((l) => l.param.axes.some((a) => a.name === "layers"))
      .reduce((n, l) => n + elements(l), 0)
    const zero3 = traffic({ ...data, zero: 3 })
    // The backward pass reads no biases: those of both outputs of a layer are gathered once.
    expect(zero3.of("allGather").bytes).toBe(share * 4 * (dealt + dealtInLayers - layers * 2 * 768))
    expect(zero3.of("reduceScatter").bytes).toBe(share * 4 * dealt)
  })

  it.each([
    ["kept after the forward pass", { reshardAfterForward: false }, layers + 1],
    ["the whole model at once", { unit: "model" as const }, 1]
  ])("2 (d - 1) / d under FSDP that gathers once: %s", (_, fsdp, gathers) => {
    const t = traffic({ ...data, fsdp })
    expect(t.bytes).toBe(2 * share * 4 * P)
    expect(t.of("allGather").times).toBe(gathers)
  })

  it("as often for every microbatch as gradients and parameters are split, and once where they are not", () => {
    const k = 4
    const times = (choices: Omit<Choices, "mesh">) => traffic({ ...data, ...choices, microbatches: k })
    expect(times({ zero: 1 }).of("reduceScatter").bytes).toBe(traffic({ ...data, zero: 1 }).of("reduceScatter").bytes)
    expect(times({ fsdp: {} }).bytes).toBe(k * traffic({ ...data, fsdp: {} }).bytes)
  })
})

describe("tensor parallelism over t ranks sends", () => {
  const t = 4
  const mesh = [["tensor", t]] as const
  /** Bytes of one sequence-long activation of the whole batch, in f32. */
  const activation = 4 * batchSize * 204 * 768

  it("4 all-reduces of b s h for each layer: two forward, two backward", () => {
    const found = traffic({ mesh })
    const all = found.of("allReduce")
    const large = 4 * layers
    // The head: logits forward, the gradient of the pooled token backward.
    expect(all.times).toBe(large + 2)
    expect(all.bytes).toBe(2 * ((t - 1) / t) * (large * activation + 4 * batchSize * (1000 + 768)))
    expect(found.lines.length).toBe(1)
  })

  it("with sequence parallelism 4 scatters and 4 gathers instead, and 2 gathers more of what layers kept in parts", () => {
    const found = traffic({ mesh, sequence: true })
    const scatters = found.of("reduceScatter")
    expect(scatters.times).toBe(4 * layers)
    expect(scatters.bytes).toBe(((t - 1) / t) * 4 * layers * activation)
    const gathers = found.of("allGather", "compute")
    // Inputs of the two products are stored in parts, and gathered again for the gradients of the weights; twice at the ends of the stack.
    expect(gathers.times).toBe((4 + 2) * layers + 2)
    expect(gathers.bytes).toBe(((t - 1) / t) * ((4 + 2) * layers + 2) * activation)
  })
})

describe("context parallelism over c ranks sends", () => {
  const c = 4
  const mesh = [["context", c]] as const
  const activation = 4 * batchSize * 204 * 768

  it("keys and values of every layer, gathered forward and backward, and scatters of their gradients", () => {
    const found = traffic({ mesh })
    expect(found.of("allGather", "compute").times).toBe(4 * layers + 2)
    expect(found.of("reduceScatter").times).toBe(2 * layers)
    expect(found.of("reduceScatter").bytes).toBe(((c - 1) / c) * 2 * layers * activation)
  })

  it("around the ring c - 1 messages forward and c backward for each layer, which brings gradients home", () => {
    const found = traffic({ mesh, context: "ring" })
    expect(found.of("permute").times).toBe((c - 1 + c) * layers)
    expect(found.of("allGather", "compute").times).toBe(2)
    // Keys and values forward; backward both and their gradients, of which the last message has the gradients alone.
    const own = activation / c
    expect(found.of("permute").bytes).toBe(layers * own * (2 * (c - 1) + 4 * (c - 1) + 2))
  })
})

describe("a pipeline", () => {
  const mesh = [["stage", 4]] as const

  it("sends one activation forward and one back for every microbatch", () => {
    const m = 8
    const boundary = (4 * batchSize * 204 * 768) / m
    for (const [stage, neighbours] of [1, 2, 2, 1].entries()) {
      const sent = traffic({ mesh, microbatches: m }, stage).of("send")
      expect(sent).toEqual({ times: neighbours * m, bytes: neighbours * m * boundary })
    }
  })

  it("has a bubble of (p - 1) / m, with v chunks of (p - 1) / (v m)", () => {
    for (const p of [2, 4])
      for (const m of [4, 8, 16])
        for (const [schedule, v] of [
          ["gpipe", 1],
          ["1f1b", 1],
          ["interleaved", 2],
          ["interleaved", 3]
        ] as const) {
          if (layers % (p * v) !== 0) continue
          const made = distribute({ mesh: [["stage", p]], microbatches: m, schedule, virtualStages: v })
          if (made.kind !== "pipelined") throw new Error("no pipeline")
          const clock = timeline(made.step.ticks, made.step.pipeline)!
          expect([schedule, p, m, v, clock.bubble]).toEqual([schedule, p, m, v, expect.closeTo((p - 1) / (v * m), 12)])
        }
  })
})
