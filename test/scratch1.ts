import * as Host from "@tessera/core/HostArray"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Simulate from "@tessera/core/Simulate"
import * as Strategy from "@tessera/core/Strategy"
import { relative } from "@tessera/core/testing/compare"
import * as Subjects from "@tessera/core/testing/Subject"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { decoder } from "./src/programs/subjects.ts"
import { alone } from "./src/strategy/alone.ts"
import { trainOnRanks } from "./src/ranks/trainOnRanks.ts"
const subject = decoder(false)
const sizes = { ...Object.fromEntries(Object.entries(subject.sizes).map(([n, v]) => [n, v[0]!])), batch: 8, layers: 4 }
const experiment = subject.make(sizes)
const optimizer = Optimizer.make(adamw({ epsilon: 1e-2 }), { decay: 0.1, clip: { maxNorm: 0.5, formula: "optax" } })
const values = Subjects.draw(experiment, optimizer, 11)
const rate = 0.004,
  seed = 11,
  steps = 3
const config = { ...experiment, optimizer }
const one = Result.getOrThrow(Simulate.step({ ...config, strategy: Strategy.single }))
let held: ReadonlyArray<Host.HostArray> = [...values.parameters, ...values.state]
const truth = Array.from({ length: steps }, (_, k) => {
  const { outputs } = one.run([...held, ...values.batch, ...Subjects.scalars(k + 1, rate, seed)])
  held = outputs.slice(0, held.length)
  return outputs
})
console.log("params", values.parameters.length, "state", values.state.length)
for (const [name, s] of [
  ["single", {}],
  ["seq", alone["sequence parallel"]!]
] as const) {
  const found = (await Effect.runPromise(
    trainOnRanks({ ...config, strategy: name === "single" ? Strategy.single : Strategy.make(s as never) }, values, {
      steps,
      rate,
      seed
    }).pipe(Effect.provide(CpuBackend.layerWith({ threads: 1, memory: "guarded" }))) as never
  )) as any
  for (const [k, f] of found.entries()) {
    const all = [...f.arrays, ...Object.values(f.metrics).map((v: any) => Host.scalar(v))]
    const gaps = all
      .map((x: any, i: number) => [i, relative(x, truth[k]![i]!), Math.max(...[...truth[k]![i]!.data].map(Math.abs))])
      .sort((a: any, b: any) => b[1] - a[1])
      .slice(0, 6)
    console.log(
      name,
      k + 1,
      gaps.map((g: any) => `${g[0]}:${g[1].toExponential(1)}/${g[2].toFixed(2)}`).join("  "),
      Object.keys(f.metrics)
    )
  }
}
