import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import * as Layout from "@tessera/core/Layout"
import * as Module from "@tessera/core/Module"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Partition from "@tessera/core/Partition"
import * as Program from "@tessera/core/Program"
import * as Step from "@tessera/core/Step"
import * as Strategy from "@tessera/core/Strategy"
import * as Tasks from "@tessera/core/Tasks"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Result from "effect/Result"
import { collectives } from "@tessera/core/primitives/collective"

const config = VitConfig.make({
  imageSize: { height: 4, width: 6 },
  patch: 2,
  channels: 1,
  hidden: 8,
  mlp: 16,
  heads: 4,
  layers: 2,
  classTokens: 2,
  pooling: "meanAll",
  dropout: 0.1,
  attentionDropout: 0.2,
  dropPath: 0.2,
  head: { kind: "linear", classes: 6, kernel: "normal", bias: 0 }
})
const model = Vit.classifier(config)
const batch = 8
const task = Tasks.classification(model, {
  batchSize: batch,
  height: 4,
  width: 6,
  channels: 1,
  classes: 6,
  smoothing: 0.1
})
const optimizer = Optimizer.make(adamw(), { decay: 0.1, clip: { maxNorm: 0.1, formula: "optax" } })

const values = Evaluate.runUnsafe(Module.init(task.params), [Host.scalar(7, "u32")])
const state = Evaluate.runUnsafe(Optimizer.initial(optimizer, task.params), values)
let s = 1
const rnd = () => {
  s = (s * 1103515245 + 12345) % 2147483648
  return (s / 2147483648) * 2 - 1
}
const data = [
  Host.make(
    Axis.list({ batch }),
    "u32",
    Array.from({ length: batch }, (_, i) => i)
  ),
  Host.make(
    Axis.list({ batch }),
    "f32",
    Array.from({ length: batch }, (_, i) => i % 3)
  ),
  Host.make(Axis.list({ batch, row: 4, col: 6, channel: 1 }), "f32", Array.from({ length: batch * 24 }, rnd)),
  Host.make(
    Axis.list({ batch }),
    "i32",
    Array.from({ length: batch }, (_, i) => i % 6)
  )
]
const scalars = [Host.scalar(0.01), Host.scalar(1), Host.scalar(5, "u32"), Host.scalar(1)]
const all = [...values, ...state, ...data, ...scalars]
const count = (b: Program.Body, times = 1, counts = new Map<string, number>()): Map<string, number> => {
  for (const e of b.equations) {
    const m = e.primitive.meaning
    if (m.kind === "region") for (const inner of m.bodies(e.params)) count(inner, times * (e.params.size ?? 1), counts)
    if (e.primitive.name in collectives && e.primitive.name !== "shard" && e.primitive.name !== "keepFirst") {
      const k = `${e.primitive.name}${e.params.by === "max" ? "Max" : ""}[${e.params.meshAxis}]`
      counts.set(k, (counts.get(k) ?? 0) + times)
    }
  }
  return counts
}
const truth = Evaluate.runUnsafe(Result.getOrThrow(Step.make({ ...task, optimizer })).program, all)
const D = (n: number) => ["data", n] as const,
  T = (n: number) => ["tensor", n] as const,
  C = (n: number) => ["context", n] as const
for (const [name, strategy] of Object.entries({
  dp4: Strategy.make({ mesh: [D(4)] }),
  zero1: Strategy.make({ mesh: [D(4)], zero: 1 }),
  zero2: Strategy.make({ mesh: [D(4)], zero: 2 }),
  zero3: Strategy.make({ mesh: [D(4)], zero: 3 }),
  tp4: Strategy.make({ mesh: [T(4)] }),
  sp4: Strategy.make({ mesh: [T(4)], sequence: true }),
  cp4: Strategy.make({ mesh: [C(4)] }),
  ring4: Strategy.make({ mesh: [C(4)], context: "ring" }),
  ringtp: Strategy.make({ mesh: [C(2), T(2)], context: "ring", sequence: true }),
  dp2tp2: Strategy.make({ mesh: [D(2), T(2)] }),
  z3sp2: Strategy.make({ mesh: [D(2), T(2)], zero: 3, sequence: true }),
  all: Strategy.make({
    mesh: [D(2), C(2), T(2)],
    zero: 2,
    sequence: true,
    microbatches: 2,
    recompute: { kind: "full" }
  })
})) {
  const step = Result.getOrThrow(Step.make({ ...task, optimizer, strategy }))
  const t0 = performance.now()
  const lowered = Result.getOrThrow(Partition.partition(step.program, strategy))
  const t1 = performance.now()
  const problem = Program.check(lowered.body)
  const out = Evaluate.lockstep(
    lowered.body,
    all.map((x, i) =>
      Layout.scatter(Host.reorder(x, step.program.inputs[i]!.type.axes), lowered.inputLayouts[i]!, strategy.mesh)
    ),
    strategy.mesh
  )
  let worst = 0,
    dis = 0
  out.forEach((x, i) => {
    const c = Layout.collect(x, lowered.outputLayouts[i]!, strategy.mesh)
    worst = Math.max(worst, Host.distance(truth[i]!, c.array))
    dis = Math.max(dis, c.disagreement)
  })
  console.log(
    name.padEnd(8),
    (t1 - t0).toFixed(0).padStart(5),
    "ms",
    (performance.now() - t1).toFixed(0).padStart(6),
    "ms",
    worst.toExponential(1),
    dis.toExponential(1),
    problem,
    lowered.body.equations.length,
    [...count(lowered.body)].map(([k, v]) => `${v} ${k}`).join(", ")
  )
}
