/** Strategies that a step cannot follow are refused before anything runs, with the tensor, the axis, the sizes and what would be right. */
import * as Axis from "@tessera/core/Axis"
import * as Distribute from "@tessera/core/Distribute"
import * as ReferenceBackend from "@tessera/core/layers/ReferenceBackend"
import { input } from "@tessera/core/Node"
import * as Optimizer from "@tessera/core/Optimizer"
import { lamb } from "@tessera/core/optimizers/lamb"
import { sgd } from "@tessera/core/optimizers/sgd"
import * as Partition from "@tessera/core/Partition"
import * as Program from "@tessera/core/Program"
import { Backend } from "@tessera/core/services/Backend"
import type { Choices } from "@tessera/core/Strategy"
import * as Strategy from "@tessera/core/Strategy"
import * as T from "@tessera/core/Tensor"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { describe, expect, it } from "vitest"
import { contrastive, vit } from "../programs/subjects.ts"

const sizesOf = (subject: ReturnType<typeof vit>) =>
  Object.fromEntries(Object.entries(subject.sizes).map(([name, values]) => [name, values[0]!]))
const model = vit(1).make({ ...sizesOf(vit(1)), batch: 8, layers: 4 })
const pairs = contrastive.make({ ...sizesOf(contrastive), batch: 8, layers: 4 })

const refusal = (strategy: Strategy.Strategy, experiment = model, optimizer = Optimizer.make(sgd())): string => {
  const made = Distribute.step({ ...experiment, optimizer, strategy })
  return Result.isFailure(made) ? `${made.failure._tag}: ${made.failure.message}` : "accepted"
}

describe("a strategy is refused", () => {
  it.each<readonly [string, Choices, RegExp]>([
    [
      "whose mesh axis is there twice",
      {
        mesh: [
          ["data", 2],
          ["data", 2]
        ]
      },
      /^PartitionError: mesh axis "data" is there twice; give each mesh axis once$/
    ],
    [
      "with a fraction of a rank",
      { mesh: [["data", 1.5]] },
      /^PartitionError: mesh axis "data" has 1.5 ranks; a count is a whole number of at least 1$/
    ],
    [
      "for a batch that does not divide",
      { mesh: [["data", 3]] },
      /^PartitionError: axis "batch" of size 8 in batch\.\w+ does not divide by 3 \(mesh axis data\); nearest legal sizes: 6 or 9, nearest legal counts: 2 or 4$/
    ],
    [
      "for microbatches that do not divide",
      { mesh: [["data", 4]], microbatches: 4 },
      /^PartitionError: axis "batch" of size 2 in batch\.\w+ \(one of 4 microbatches\) does not divide by 4/
    ],
    ["for microbatches that a batch has not", { mesh: [], microbatches: 3 }, /^RecipeError: .*3.*8/],
    [
      "for heads that do not divide",
      { mesh: [["tensor", 3]] },
      /^PartitionError: axis "heads" of size \d+ in parameter \S+ does not divide by 3 \(mesh axis tensor\)/
    ],
    [
      "for layers that make no stages",
      { mesh: [["stage", 3]] },
      /^PartitionError: axis "layers" of size 4 in the stacks of layers does not divide by 3 \(mesh axis stage\)/
    ],
    [
      "with stages inside of other axes",
      {
        mesh: [
          ["data", 2],
          ["stage", 2]
        ]
      },
      /^PartitionError: .*not the outermost mesh axis.*put "stage" first$/
    ],
    [
      "with chunks that its schedule does not know",
      { mesh: [["stage", 2]], virtualStages: 2 },
      /^PartitionError: schedule 1f1b with 2 chunks a stage; use schedule "interleaved" or virtualStages 1$/
    ],
    [
      "with microbatches that interleaving cannot deal out",
      { mesh: [["stage", 2]], schedule: "interleaved", virtualStages: 2 },
      /^PartitionError: 1 microbatches are not a multiple of 2 stages/
    ],
    [
      "that drops the whole model when nothing runs meanwhile",
      { mesh: [["data", 2]], fsdp: { unit: "model", reshardAfterForward: true } },
      /^RecipeError: strategy.fsdp.reshardAfterForward: /
    ]
  ])("%s", (_, choices, message) => {
    expect(refusal(Strategy.make(choices))).toMatch(message)
  })

  it("with flat parameters for an optimizer that looks at whole tensors", () => {
    const strategy = Strategy.make({ mesh: [["data", 2]], fsdp: {} })
    expect(refusal(strategy, model, Optimizer.make(lamb()))).toMatch(
      /^RecipeError: optimizer: lamb\(.*\) looks at whole parameters/
    )
  })

  it("with a pipeline of several microbatches for a loss over all pairs", () => {
    const strategy = Strategy.make({ mesh: [["stage", 2]], microbatches: 2 })
    expect(refusal(strategy, pairs)).toMatch(/^PartitionError: pipeline: a loss that compares all examples/)
  })
})

describe("a partial sum", () => {
  const x = input({ axes: Axis.list({ batch: 4, embed: 2 }), dtype: "f32" }) as T.Tensor<"batch" | "embed">
  const w = input({ axes: Axis.list({ embed: 2 }), dtype: "f32" }, "parameter")
  const gradient = T.sum(x, "batch")
  const strategy = Strategy.make({ mesh: [["data", 2]] })

  it("cannot become a parameter", () => {
    const next = T.sub(T.place(w as T.Tensor<"embed">, "parameter"), T.place(gradient, "parameter"))
    const program = Program.make({ params: w, x }, { params: T.place(next, "parameter") })
    // As a partitioner would do that leaves debts where they are.
    const lazy = Partition.partition(program, strategy, { outputs: (_, o, scope) => Partition.lateLayout(o, scope) })
    const honest = Result.getOrThrow(Partition.partition(program, strategy))
    expect(Program.print(honest.program)).toMatch(/allReduce/)
    if (Result.isFailure(lazy))
      expect(lazy.failure.message).toMatch(/^params is still a partial sum over mesh axis "data"/)
    else expect(Program.print(lazy.success.program)).toMatch(/allReduce/)
  })
})

it("the evaluator as a backend refuses programs for ranks, and says where they run", async () => {
  const x = input({ axes: Axis.list({ batch: 4 }), dtype: "f32" }) as T.Tensor<"batch">
  const { program } = Result.getOrThrow(
    Partition.partition(Program.make({ x }, { y: T.sum(x, "batch") }), Strategy.make({ mesh: [["data", 2]] }))
  )
  const error = await Effect.runPromise(
    Effect.flatMap(Backend, (backend) => backend.compile(program)).pipe(
      Effect.scoped,
      Effect.flip,
      Effect.provide(ReferenceBackend.layer)
    )
  )
  expect(error.message).toMatch(
    /^reference backend, MeshMismatch: allReduce\(.* needs several ranks at once; Simulate\.step/
  )
})
