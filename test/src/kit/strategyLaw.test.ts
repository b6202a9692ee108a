import { RecipeError } from "@tessera/core/Errors"
import type { AnyTensor, Equation, Tensor } from "@tessera/core/Node"
import { build } from "@tessera/core/Node"
import { allGatherP, allReduceP } from "@tessera/core/primitives/collective"
import * as Simulate from "@tessera/core/Simulate"
import * as T from "@tessera/core/Tensor"
import type { StrategyImplementation } from "@tessera/core/testing"
import { strategyCounterexample, strategyPreservesMeaning } from "@tessera/core/testing"
import * as Tree from "@tessera/core/Tree"
import * as Result from "effect/Result"
import { describe, expect, it } from "vitest"
import { layered, tagger, towers } from "./models.ts"
import type { Rewrite } from "./rewriting.ts"
import { rewritten } from "./rewriting.ts"
import { expectSmall } from "./screen.ts"

describe("every strategy means what one device means", () => {
  it.each([layered(0.25), towers, tagger])("$name", (subject) => strategyPreservesMeaning(subject, { runs: 10 }))
})

/** The program of one rank with a fault. */
const faulty =
  (rewrite: Rewrite, input?: (x: AnyTensor, path: string) => AnyTensor): StrategyImplementation =>
  (config) =>
    Result.map(Simulate.step(config), (made) => {
      if (made.how.kind !== "spread") return made
      const { local, step } = made.how
      const paths = Tree.paths(step.program.inTree)
      const broken = rewritten(local, rewrite, (x, i) => input?.(x, paths[i]!) ?? x)
      return Simulate.ofRanks(step, broken, config.strategy!.mesh)
    })

/** Whether gradients are added up over ranks here. */
const isReduction = ({ outputs: [o], primitive }: Equation) =>
  primitive === allReduceP && o!.role !== "compute" && o!.type.axes.length > 0

const withoutReduction = faulty((e, inputs) => (isReduction(e) ? inputs : null))

/** The mean over ranks, where each has a part of the sum. */
const averaged = faulty((e, inputs) =>
  isReduction(e)
    ? build(e.primitive, inputs, e.params, e.outputs[0]!.role).map((x) =>
        T.scale(x as Tensor<string>, 1 / e.params.count)
      )
    : null
)

/** Each rank numbers its own examples from the beginning: all of them draw the masks of the first. */
const sharedKey = faulty(
  () => null,
  (x, path) => {
    if (path !== "batch/examples") return x
    const own = T.iota("batch", x.type.axes[0]!.size, "u32")
    const word = (n: number) => T.constant(n, "u32") as AnyTensor as Tensor<never, "int">
    return T.add(T.mul(own, word(7)), word(100))
  }
)

/** What the optimizer keeps where a step is not finite: the old value. */
const before = (x: AnyTensor): AnyTensor => {
  let at = x
  while (at.equation?.primitive.name === "place") at = at.equation.inputs[0]!
  return at.equation?.primitive.name === "select" ? at.equation.inputs[2]! : x
}

/** Updated shards are there, but what is gathered are those from before the update. */
const staleGather = faulty((e, inputs) =>
  e.primitive === allGatherP && e.outputs[0]!.role === "parameter"
    ? build(allGatherP, inputs.map(before), e.params, "parameter")
    : null
)

/** Every stage but the first takes layers from one too early. */
const offByOne: StrategyImplementation = (config) =>
  Result.map(Simulate.step(config), ({ how }) => {
    if (how.kind !== "pipelined") return Simulate.ofRanks(how.step, how.local, config.strategy!.mesh)
    const chunks = how.step.chunks.map((own) => ({
      ...own,
      chunk: {
        ...own.chunk,
        given: own.chunk.given.map((g) =>
          g.layers === null || g.layers.start === 0 ? g : { ...g, layers: { ...g.layers, start: g.layers.start - 1 } }
        )
      }
    }))
    return Simulate.ofStages({ ...how.step, chunks })
  })

describe("the law catches", () => {
  const find = (implementation: StrategyImplementation) =>
    strategyCounterexample(layered(0.25), { implementation, seed: 7, runs: 60 })
  it("gradients that ranks do not add up", () => expectSmall(find(withoutReduction), "mesh: data=2\n"))
  it("gradients that ranks average instead", () => expectSmall(find(averaged), "mesh: data=2\n"))
  it("a dropout key that ranks share", () => expectSmall(find(sharedKey), "mesh: data=2\n", "randomBits("))
  it("parameters gathered from before the update", () =>
    expectSmall(find(staleGather), "mesh: data=2\n", "strategy: zero 1\n"))
  it("a stage that begins one layer too early", () =>
    expectSmall(find(offByOne), "mesh: stage=2\n", "in scan over layers"))
})

it("a subject of which no case is legal is no success", () => {
  const problem = new RecipeError({ key: "mesh", problem: "none fits", hint: "" })
  const found = strategyCounterexample(layered(0), { runs: 5, implementation: () => Result.fail(problem) })
  expect(found?.message).toMatch(/none of \d+ cases could be judged; give the subject sizes that divide/)
})
