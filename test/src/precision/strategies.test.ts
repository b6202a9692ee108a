/** Strategies under 16 bits: gradients are reduced in the type that the policy says, and the step means what it means on one device. */
import * as DType from "@tessera/core/DType"
import type { HostArray } from "@tessera/core/HostArray"
import * as Host from "@tessera/core/HostArray"
import type { Body, Equation } from "@tessera/core/Node"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Precision from "@tessera/core/Precision"
import * as Program from "@tessera/core/Program"
import * as Simulate from "@tessera/core/Simulate"
import * as Strategy from "@tessera/core/Strategy"
import type { Subject } from "@tessera/core/testing/Subject"
import * as Subjects from "@tessera/core/testing/Subject"
import * as fc from "fast-check"
import * as Result from "effect/Result"
import { describe, expect, it } from "vitest"
import { contrastive, decoder, vit } from "../programs/subjects.ts"

const made = (options: Precision.Options) => Result.getOrThrow(Precision.make(options))

/** The plainest sizes of a subject. */
const plain = (subject: Subject): Subjects.Sizes =>
  Object.fromEntries(Object.entries(subject.sizes).map(([name, values]) => [name, values[0]!]))

const choices = {
  "data parallel": { mesh: [["data", 2]] },
  "data parallel, microbatches": { mesh: [["data", 2]], microbatches: 2 },
  "zero 1": { mesh: [["data", 2]], zero: 1 },
  "zero 2, microbatches": { mesh: [["data", 2]], zero: 2, microbatches: 2 },
  "zero 3": { mesh: [["data", 2]], zero: 3 },
  "flat parameters": { mesh: [["data", 2]], fsdp: {} },
  "flat parameters, microbatches": { mesh: [["data", 2]], fsdp: {}, microbatches: 2 },
  "tensor and sequence parallel": {
    mesh: [
      ["data", 2],
      ["tensor", 2]
    ],
    sequence: true
  },
  pipeline: {
    mesh: [
      ["stage", 2],
      ["data", 2]
    ],
    microbatches: 2
  }
} satisfies Readonly<Record<string, Strategy.Choices>>

const simulation = (
  subject: Subject,
  precision: Precision.Precision,
  chosen: Strategy.Choices,
  optimizer: Optimizer.Optimizer = Optimizer.make(adamw({ b2: 0.95 }))
) =>
  Simulate.step({
    ...subject.make(plain(subject)),
    precision,
    optimizer,
    strategy: { ...Strategy.make(chosen), bucketBytes: 0 }
  })

/** The programs that ranks run. */
const programsOf = ({ how }: Simulate.Simulation): ReadonlyArray<Body> =>
  how.kind === "spread"
    ? [how.local.body]
    : [...how.step.chunks.flatMap((c) => [c.forward.body, c.backward.body]), how.step.update.body]

interface Times {
  readonly equation: Equation
  readonly times: number
}

/** Collectives that add up, and how often they run. */
const sums = (body: Body, times = 1): ReadonlyArray<Times> =>
  body.equations.flatMap((equation): ReadonlyArray<Times> => {
    const { meaning } = equation.primitive
    const { by = "sum", size = 1 } = equation.params as { readonly by?: string; readonly size?: number }
    if (meaning.kind === "region") return meaning.bodies(equation.params).flatMap((b) => sums(b, times * size))
    const adds = ["allReduce", "reduceScatter"].includes(equation.primitive.name) && by === "sum"
    return adds ? [{ equation, times }] : []
  })

/** Of gradients: those of parameters, as they are placed or as the optimizer reads them. */
const ofGradients = (all: ReadonlyArray<Times>): ReadonlyArray<Times> =>
  all.filter(({ equation }) =>
    equation.inputs.some((x) => x.type.axes.length > 0 && (x.role === "gradient" || x.role === "optimizer"))
  )

const typesOf = (all: ReadonlyArray<Times>) => [
  ...new Set(all.flatMap(({ equation }) => equation.inputs.map((x) => x.type.dtype)))
]
const wire = (all: ReadonlyArray<Times>) =>
  all.reduce((bytes, { equation, times }) => {
    const own = Object.values(Program.costOf(equation).wireBytes).reduce((a, b) => a + b, 0)
    return bytes + times * own
  }, 0)

describe("the collective that reduces gradients", () => {
  const wide = Precision.bf16
  const narrow = made({ mode: "bf16", gradients: "bf16" })

  it.each(Object.entries(choices))("carries what the policy says: %s", (_name, chosen: Strategy.Choices) => {
    const [f32, bf16, full, o1] = [wide, narrow, Precision.bf16Full, made({ mode: "bf16-O1", gradients: "bf16" })].map(
      (p) => programsOf(Result.getOrThrow(simulation(vit(1), p, chosen))).flatMap((b) => sums(b))
    )
    expect(typesOf(ofGradients(f32!))).toEqual(["f32"])
    for (const all of [bf16!, full!, o1!]) expect(typesOf(ofGradients(all))).toEqual(["bf16"])
    // The same reductions, half of the bytes.
    expect(ofGradients(bf16!).length).toBe(ofGradients(f32!).length)
    expect(wire(ofGradients(bf16!))).toBe(wire(ofGradients(f32!)) / 2)
    // Nothing of a gradient is reduced before it is placed: what else adds up are numbers and, with tensor parallelism, activations.
    const others = f32!.filter(
      (x) => !ofGradients([x]).includes(x) && x.equation.inputs.some((y) => y.type.axes.length > 0)
    )
    if (!chosen.mesh.some(([m]) => m === "tensor")) expect(others.length).toBe(0)
  })

  it("adds up over microbatches in f32, and in bf16 in the full mode alone", () => {
    const chosen = choices["data parallel, microbatches"]
    const accumulated = (precision: Precision.Precision) => {
      const { how } = Result.getOrThrow(simulation(vit(1), precision, chosen))
      if (how.kind !== "spread") throw new Error("no pipeline was asked for")
      const scan = how.local.body.equations.find((e) => e.primitive.name === "scan" && e.params.axis === "micro")!
      return [...new Set(scan.outputs.filter((o) => o.type.axes.length > 0).map((o) => o.type.dtype))]
    }
    expect([wide, narrow, Precision.bf16Full].map(accumulated)).toEqual([["f32"], ["f32"], ["bf16"]])
  })

  it("is printed in the program of a rank", () => {
    const { how } = Result.getOrThrow(simulation(vit(1), narrow, choices["data parallel"]))
    if (how.kind !== "spread") throw new Error("no pipeline was asked for")
    expect(Program.print(how.local.body)).toMatch(
      /bf16\[embed=8, classes=6\] optimizer = allReduce\(%\d+\) \{"meshAxis":"data","count":2,"by":"sum"\}/
    )
  })
})

/** Arrays as a step takes them: rounded to the types that it keeps. */
const asStored = (arrays: ReadonlyArray<HostArray>, types: ReadonlyArray<DType.DType>): ReadonlyArray<HostArray> =>
  arrays.map((x, i) => ({ ...x, dtype: types[i]!, data: x.data.map((v) => DType.store(types[i]!, v)) }))

/** Root of the sum of squared differences of all parameters. */
const apart = (xs: ReadonlyArray<HostArray>, ys: ReadonlyArray<HostArray>): number =>
  Math.sqrt(
    xs.reduce((sum, x, i) => {
      const y = Host.reorder(ys[i]!, x.axes).data
      return sum + x.data.reduce((s, v, k) => s + (v - y[k]!) ** 2, 0)
    }, 0)
  )

const modes: Readonly<Record<string, Precision.Precision>> = {
  bf16: Precision.bf16,
  "bf16-O1": Precision.bf16O1,
  f16: Precision.f16,
  "bf16, all of it": made({
    mode: "bf16",
    norms: "bf16",
    softmax: "bf16",
    losses: "bf16",
    logitScale: "bf16",
    gradients: "bf16"
  }),
  "bf16-full": Precision.bf16Full
}

describe("a strategy means what one device means, within the rounding of the type", () => {
  const subjects = { vit: vit(1), decoder: decoder(false), contrastive }
  const cases = fc.record({
    subject: fc.constantFrom<Array<keyof typeof subjects>>("vit", "decoder", "contrastive"),
    strategy: fc.constantFrom(...(Object.keys(choices) as Array<keyof typeof choices>)),
    mode: fc.constantFrom(...Object.keys(modes)),
    seed: fc.integer({ min: 1, max: 100 })
  })

  it("loss and gradients of three models in five modes", () => {
    fc.assert(
      fc.property(cases, ({ mode, seed, strategy, subject: name }) => {
        const subject = subjects[name]
        const optimizer = Optimizer.make(sgd())
        const outcome = (precision: Precision.Precision, chosen: Strategy.Choices) => {
          const step = simulation(subject, precision, chosen, optimizer)
          // Pairwise losses do not go through a pipeline in microbatches.
          fc.pre(Result.isSuccess(step))
          const { batch, parameters } = Subjects.draw(subject.make(plain(subject)), optimizer, seed)
          const held = asStored(
            parameters,
            parameters.map(() => precision.master)
          )
          const { disagreement, outputs } = Result.getOrThrow(step).run([
            ...held,
            ...batch,
            ...Subjects.scalars(1, 1, seed)
          ])
          expect(disagreement).toBe(0)
          return { held, gradient: outputs.slice(0, held.length), loss: outputs[held.length]!.data[0]! }
        }
        const alone = outcome(modes[mode]!, { mesh: [] })
        const spread = outcome(modes[mode]!, choices[strategy])
        const exact = outcome(Precision.f32, { mesh: [] })
        const size = apart(exact.gradient, exact.held)
        const [own, found] = [apart(alone.gradient, exact.gradient), apart(spread.gradient, exact.gradient)]
        expect(found).toBeLessThan(1.5 * own + 0.01 * size)
        expect(Math.abs(spread.loss - alone.loss)).toBeLessThan(
          8 * DType.epsilonOf(modes[mode]!.matmul) * (1 + Math.abs(exact.loss))
        )
      }),
      { numRuns: 12 }
    )
  })
})
