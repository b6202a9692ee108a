import * as Layout from "@tessera/core/Layout"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Simulate from "@tessera/core/Simulate"
import * as Strategy from "@tessera/core/Strategy"
import { moves } from "@tessera/core/primitives/collective"
import * as Program from "@tessera/core/Program"
import * as First from "@tessera/core/testing/FirstDifference"
import * as Subject from "@tessera/core/testing/Subject"
import { widest } from "@tessera/core/testing/compare"
import * as Result from "effect/Result"
import { subjects } from "./src/programs/subjects.ts"
const optimizer = Optimizer.make(adamw(), { decay: 0.1, clip: { maxNorm: 0.1, formula: "optax" } })
const D = (n: number) => ["data", n] as const,
  T = (n: number) => ["tensor", n] as const,
  C = (n: number) => ["context", n] as const
const all: Record<string, Strategy.Strategy> = {
  dp4: Strategy.make({ mesh: [D(4)] }),
  zero1: Strategy.make({ mesh: [D(4)], zero: 1 }),
  zero2: Strategy.make({ mesh: [D(4)], zero: 2 }),
  zero3: Strategy.make({ mesh: [D(4)], zero: 3 }),
  tp2: Strategy.make({ mesh: [T(2)] }),
  tp4: Strategy.make({ mesh: [T(4)] }),
  sp2: Strategy.make({ mesh: [T(2)], sequence: true }),
  sp4: Strategy.make({ mesh: [T(4)], sequence: true }),
  cp2: Strategy.make({ mesh: [C(2)] }),
  ring2: Strategy.make({ mesh: [C(2)], context: "ring" }),
  ring4: Strategy.make({ mesh: [C(4)], context: "ring" }),
  dp2tp2: Strategy.make({ mesh: [D(2), T(2)] }),
  z3sp2: Strategy.make({ mesh: [D(2), T(2)], zero: 3, sequence: true }),
  micro: Strategy.make({ mesh: [D(2), T(2)], microbatches: 2, zero: 2, recompute: { kind: "full" } }),
  all: Strategy.make({
    mesh: [D(2), C(2), T(2)],
    zero: 2,
    sequence: true,
    microbatches: 2,
    recompute: { kind: "full", layers: 2 },
    context: "ring"
  })
}
const S = (n: number) => ["stage", n] as const
Object.assign(all, {
  pp2g: Strategy.make({ mesh: [S(2)], schedule: "gpipe", microbatches: 4 }),
  pp2: Strategy.make({ mesh: [S(2)], microbatches: 4 }),
  pp2m1: Strategy.make({ mesh: [S(2)], microbatches: 1 }),
  ppi: Strategy.make({ mesh: [S(2)], microbatches: 2, schedule: "interleaved", virtualStages: 2 }),
  ppi1: Strategy.make({ mesh: [S(2)], microbatches: 2, schedule: "interleaved", virtualStages: 1 }),
  pp2dp2tp2: Strategy.make({ mesh: [S(2), D(2), T(2)], microbatches: 2 }),
  pp2z3sp: Strategy.make({
    mesh: [S(2), D(2), T(2)],
    microbatches: 2,
    zero: 3,
    sequence: true,
    recompute: { kind: "full" }
  }),
  pp2ring: Strategy.make({
    mesh: [S(2), C(2)],
    microbatches: 2,
    zero: 1,
    context: "ring",
    recompute: { kind: "selective" }
  })
})
Object.assign(all, {
  fs4: Strategy.make({ mesh: [D(4)], fsdp: {} }),
  fs3: Strategy.make({ mesh: [D(2)], fsdp: { reshardAfterForward: false } }),
  fsm: Strategy.make({ mesh: [D(4)], fsdp: { unit: "model" } }),
  fsr: Strategy.make({ mesh: [D(2)], fsdp: {}, recompute: { kind: "full" }, microbatches: 2 }),
  fsring: Strategy.make({ mesh: [D(2), C(2)], fsdp: {}, context: "ring" }),
  fstp: Strategy.make({ mesh: [D(2), T(2)], fsdp: {} }),
  fspp: Strategy.make({ mesh: [S(2), D(2)], fsdp: {}, microbatches: 2 })
})
const only = process.argv[2]
for (const subject of subjects) {
  for (const pick of [0, 1]) {
    const sizes = Object.fromEntries(
      Object.entries(subject.sizes).map(([k, v]) => [k, v[Math.min(pick, v.length - 1)]!])
    )
    const experiment = subject.make({ ...sizes, batch: 8 })
    const values = Subject.draw(experiment as any, optimizer, 3)
    const inputs = [...values.parameters, ...values.state, ...values.batch, ...Subject.scalars(1, 0.05, 9)]
    const truth = Result.getOrThrow(Simulate.step({ ...(experiment as any), optimizer })).run(inputs).outputs
    for (const [name, strategy] of Object.entries(all)) {
      if (only && !name.startsWith(only)) continue
      const t0 = performance.now()
      try {
        const sim = Result.getOrThrow(Simulate.step({ ...(experiment as any), optimizer, strategy }))
        const t1 = performance.now()
        const { outputs, disagreement } = sim.run(inputs)
        const gap = widest(truth, outputs)
        const colls = new Map<string, number>()
        const count = (b: Program.Body, times: number): void => {
          for (const e of b.equations) {
            const m = e.primitive.meaning
            if (m.kind === "region") m.bodies(e.params).forEach((x) => count(x, times * (e.params.size ?? 1)))
            if (moves(e.primitive))
              colls.set(
                e.primitive.name + "[" + e.params.meshAxis + "]",
                (colls.get(e.primitive.name + "[" + e.params.meshAxis + "]") ?? 0) + times
              )
          }
        }
        if (sim.how.kind === "spread") count(sim.how.local.body, 1)
        console.log(
          subject.name.padEnd(40),
          pick,
          name.padEnd(8),
          (t1 - t0).toFixed(0).padStart(5),
          (performance.now() - t1).toFixed(0).padStart(6),
          gap.distance.toExponential(1),
          disagreement.toExponential(1),
          sim.how.kind === "spread" ? (Program.check(sim.how.local.body) ?? "") : "",
          [...colls].map(([k, v]) => v + " " + k).join(", ")
        )
        if (gap.distance > 1e-9) console.log("output", gap.output)
        if (gap.distance > 1e-9 && sim.how.kind === "spread") {
          const how = sim.how
          const body = how.step.program
          const p = Simulate.parts(how.step, how.local, strategy.mesh, inputs)
          const d = First.firstDifference(
            { body, inputs: p.map((x, i) => Layout.collect(x, how.local.inputLayouts[i]!, strategy.mesh).array) },
            { lowered: how.local, mesh: strategy.mesh, inputs: p },
            1e-9
          )
          console.log(d === null ? "no difference found" : First.print(d))
        }
      } catch (e: any) {
        console.log(subject.name.padEnd(40), pick, name.padEnd(8), String(e.message).slice(0, 300))
        if (process.argv[3]) console.log(e.stack.split("\n").slice(0, 6).join("\n"))
      }
    }
  }
}
