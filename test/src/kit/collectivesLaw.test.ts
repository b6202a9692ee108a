import type { Body, Equation } from "@tessera/core/Node"
import { build } from "@tessera/core/Node"
import { allReduceP, keepFirstP, moves } from "@tessera/core/primitives/collective"
import * as Program from "@tessera/core/Program"
import * as Simulate from "@tessera/core/Simulate"
import type { Ranks, RanksImplementation } from "@tessera/core/testing"
import { collectivesAgree, collectivesCounterexample, ranksOf } from "@tessera/core/testing"
import * as Result from "effect/Result"
import { describe, it } from "vitest"
import { layered, tagger, towers } from "./models.ts"
import type { Rewrite } from "./rewriting.ts"
import { rewritten } from "./rewriting.ts"
import { expectSmall } from "./screen.ts"

describe("ranks agree", () => {
  it.each([layered(0.25), towers, tagger])("$name", (subject) => collectivesAgree(subject, { runs: 10 }))
})

/** All ranks run one program, with a fault. */
const together =
  (rewrite: Rewrite): RanksImplementation =>
  (config) =>
    Result.map(Simulate.step(config), (made) => {
      const { mesh } = config.strategy
      if (made.how.kind !== "spread") return ranksOf(made, mesh)
      const { local, step } = made.how
      return ranksOf(Simulate.ofRanks(step, rewritten(local, rewrite), mesh), mesh)
    })

/** The last rank runs something else. */
const alone =
  (change: (body: Body) => Body): RanksImplementation =>
  (config) =>
    Result.map(Simulate.step(config), (made): Ranks => {
      const { programs, simulation } = ranksOf(made, config.strategy.mesh)
      return {
        simulation,
        programs: programs.map((own, rank) => (rank === programs.length - 1 ? own.map(change) : own))
      }
    })

const isSum = ({ outputs: [o], primitive }: Equation) => primitive === allReduceP && o!.role !== "compute"

const unreduced = together((e, inputs) => (isSum(e) ? inputs : null))

/** Only the first rank has the sum. */
const firstOnly = together((e, inputs) => {
  if (!isSum(e)) return null
  const roles = e.outputs.map((o) => o.role)
  const sums = build(e.primitive, inputs, e.params, roles)
  return build(keepFirstP, sums, { meshAxis: e.params.meshAxis, count: e.params.count }, roles)
})

/** The equations of a program in another order. */
const reordered = (body: Body): Body => {
  const at = body.equations.flatMap((e, i) => (moves(e.primitive) ? [i] : []))
  const swap = at.find((i, k) => {
    const [a, b] = [body.equations[i]!, body.equations[at[k + 1] ?? -1]]
    return b !== undefined && Program.line(a) !== Program.line(b) && b.params.meshAxis === a.params.meshAxis
  })
  if (swap === undefined) return body
  const other = at[at.indexOf(swap) + 1]!
  const equations = body.equations.with(swap, body.equations[other]!).with(other, body.equations[swap]!)
  return { ...body, equations }
}

/** The last collective is left out. */
const skipping = (body: Body): Body => {
  const last = body.equations.findLastIndex((e) => moves(e.primitive))
  return { ...body, equations: body.equations.filter((_, i) => i !== last) }
}

/** The last rank brings numbers in 16 bits. */
const narrow = (body: Body): Body => ({
  ...body,
  equations: body.equations.map((e) => {
    if (!moves(e.primitive)) return e
    const inputs = e.inputs.map((x) => ({ ...x, type: { ...x.type, dtype: "bf16" as const } }))
    return { ...e, inputs }
  })
})

describe("the law catches", () => {
  const find = (implementation: RanksImplementation) =>
    collectivesCounterexample(layered(0.25), { implementation, seed: 6, runs: 60 })

  it("gradients that ranks do not add up", () => expectSmall(find(unreduced), "mesh: data=2\n", "rank 0: "))
  it("a sum that only the first rank gets", () => expectSmall(find(firstOnly), "mesh: data=2\n", "rank 1: "))
  it("collectives in another order", () =>
    expectSmall(find(alone(reordered)), "=2\n", "different calls", "rank 1, collective 1: "))
  it("a collective that one rank leaves out", () =>
    expectSmall(find(alone(skipping)), "=2\n", "wait for each other", "rank 1, done after"))
  it("operands of another type", () => expectSmall(find(alone(narrow)), "=2\n", "different calls", "bf16["))
})
