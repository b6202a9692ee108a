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

for (const q of [1, 2, 3, 4]) {
  let x = q * 7919
  const coin = () => {
    x = (x * 1103515245 + 12345) % 2147483648
    return x / 1073741824 - 1
  }
  let h: ReadonlyArray<Host.HostArray> = [...values.parameters, ...values.state].map((a) => ({
    ...a,
    data: a.data.map((v) => v * (1 + Math.sign(coin()) * 2 ** -23))
  }))
  for (let k = 0; k < 3; k++) {
    const { outputs } = one.run([...h, ...values.batch, ...Subjects.scalars(k + 1, rate, seed)])
    h = outputs.slice(0, h.length)
    console.log(
      q,
      k + 1,
      outputs
        .map((o, i) => [i, relative(o, truth[k]![i]!)] as const)
        .sort((a, b) => b[1] - a[1])
        .slice(0, 3)
        .map(([i, d]) => `${i}:${d.toExponential(1)}`)
        .join(" ")
    )
  }
}
