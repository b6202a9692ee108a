/** Training steps on simulated ranks with native kernels: whole arrays in, whole arrays out, as `Simulate` gives them. */
import * as Host from "@tessera/core/HostArray"
import type * as Module from "@tessera/core/Module"
import * as StepRunner from "@tessera/core/runner/StepRunner"
import { Backend } from "@tessera/core/services/Backend"
import { Collectives } from "@tessera/core/services/Collectives"
import type * as Step from "@tessera/core/Step"
import * as Strategy from "@tessera/core/Strategy"
import type { Values } from "@tessera/core/testing/Subject"
import * as Effect from "effect/Effect"
import * as LocalRanks from "./localRanks.ts"
import type { Kind } from "./onRanks.ts"

export interface Stepped {
  /** What lives after the step, as declared. */
  readonly arrays: ReadonlyArray<Host.HostArray>
  readonly metrics: Readonly<Record<string, number>>
  readonly disagreement: number
}

/** Steps after each other on the same batch. */
export const trainOnRanks = <P extends Module.ParamTree, const B extends Step.BatchTypes>(
  config: Step.Config<P, B>,
  values: Values,
  options: { readonly steps: number; readonly rate: number; readonly seed: number },
  kind: Kind = "simulated"
) =>
  Effect.gen(function* () {
    const { strategy = Strategy.single } = config
    const all = kind === "simulated" ? LocalRanks.simulated : LocalRanks.all
    const ranks: ReadonlyArray<Rank> = yield* all(strategy.mesh, () => Effect.scoped(oneRank(config, values, options)))
    const first = ranks[0]!
    return Array.from({ length: options.steps }, (_, k): Stepped => {
      const { arrays, disagreement } = StepRunner.whole(
        first.runner,
        ranks.map((r) => r.steps[k]!.parts),
        strategy.mesh
      )
      const { metrics } = first.steps[k]!
      const apart = ranks.flatMap((r) =>
        Object.entries(r.steps[k]!.metrics).map(([name, v]) => Math.abs(v - metrics[name]!))
      )
      return { arrays, metrics, disagreement: Math.max(disagreement, ...apart) }
    })
  })

interface Rank {
  readonly runner: StepRunner.StepRunner
  readonly steps: ReadonlyArray<{
    readonly parts: ReadonlyArray<Host.HostArray>
    readonly metrics: Readonly<Record<string, number>>
  }>
}

const oneRank = <P extends Module.ParamTree, const B extends Step.BatchTypes>(
  config: Step.Config<P, B>,
  values: Values,
  { rate, seed, steps }: { readonly steps: number; readonly rate: number; readonly seed: number }
) =>
  Effect.gen(function* () {
    const backend = yield* Backend
    const { mesh, rank } = yield* Collectives
    const runner = yield* StepRunner.make(config)
    yield* StepRunner.load(runner, [...values.parameters, ...values.state])
    const batch = yield* Effect.forEach(runner.batch, (part, i) =>
      Effect.gen(function* () {
        const buffer = yield* backend.allocate(part.local)
        yield* backend.write(buffer, Host.toBytes(StepRunner.partOf(values.batch[i]!, part, mesh, rank)))
        return buffer
      })
    )
    const found: Array<Rank["steps"][number]> = []
    for (let k = 0; k < steps; k++) {
      const metrics = yield* runner.run(batch, { learningRate: rate, step: k + 1, seed: seed + k + 1, lossScale: 1 })
      found.push({ metrics, parts: yield* StepRunner.parts(runner) })
    }
    const own: Rank = { runner, steps: found }
    return own
  })
