/** Precision in recipes: a name, or a mode with options; a run in the full 16-bit mode from training to prediction. */
import { RecipeError } from "@tessera/core/Errors"
import * as Experiment from "@tessera/cli/Experiment"
import * as Layers from "@tessera/cli/Layers"
import { mnist } from "@tessera/models/recipes/mnist"
import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { tessera, tiny } from "../cli/tessera.ts"

/** The recipe with these layers on top, the last the strongest. */
const resolve = (...precisions: ReadonlyArray<unknown>) =>
  Layers.resolve([
    { source: "recipe mnist", values: { ...mnist, optimizer: { name: "sgd", learningRate: 0.1 } } },
    ...precisions.map((precision) => ({ source: "test", values: { precision } }))
  ])
const policy = (...precisions: ReadonlyArray<unknown>) =>
  Experiment.precision(Result.getOrThrow(resolve(...precisions)).recipe)

describe("precision in a recipe", () => {
  it("is a name or a record", () => {
    for (const name of ["f32", "bf16", "bf16-O1", "bf16-O2", "bf16-full", "f16", "f16-O1", "f16-O2", "f16-full"])
      assert.strictEqual(policy(name).name, name.replace("-O2", ""))
    assert.strictEqual(policy({ mode: "bf16-O2", norms: "bf16" }).name, "bf16 (norms bf16)")
    assert.strictEqual(policy().name, mnist.precision)
  })

  it("options go with the mode below them; another mode begins anew", () => {
    assert.strictEqual(policy("bf16", { norms: "bf16" }).name, "bf16 (norms bf16)")
    assert.strictEqual(
      policy("bf16", { norms: "bf16" }, { gradients: "bf16" }).name,
      "bf16 (norms bf16, gradients bf16)"
    )
    assert.strictEqual(policy({ mode: "bf16", norms: "bf16" }, { mode: "f16" }).name, "f16")
    assert.strictEqual(policy({ mode: "bf16", norms: "bf16" }, "f32").name, "f32")
  })

  it("is refused with its key and the nearest legal value", () => {
    const refused = (expected: string, ...precisions: ReadonlyArray<unknown>) => {
      const result = resolve(...precisions)
      assert.isTrue(Result.isFailure(result) && result.failure instanceof RecipeError, expected)
      if (Result.isFailure(result)) assert.include(result.failure.message, expected)
    }
    refused('precision: unknown precision "fp16"; did you mean "f16"?', "fp16")
    refused('precision.mode: unknown precision "bf16_full"; did you mean "bf16-full"?', { mode: "bf16_full" })
    refused("precision.norm: no such setting; did you mean precision.norms?", { mode: "bf16", norm: "bf16" })
    refused('precision.norms: unknown type of floats "fp32"; did you mean "f32"?', { mode: "bf16", norms: "fp32" })
    refused('precision.softmax: f16 beside bf16, whose numbers have another range; use "bf16" or "f32"', "bf16", {
      softmax: "f16"
    })
    refused("precision.gradients: f32, but nothing is kept in more than bf16", { mode: "bf16-full", gradients: "f32" })
    refused("precision", 16)
    const forgetful = Layers.resolve([
      { source: "recipe mnist", values: mnist },
      { source: "test", values: { precision: "bf16-full", optimizer: { b2: 0.999 } } }
    ])
    assert.include(String(Result.isFailure(forgetful) && forgetful.failure), "use a decay of at most 0.996, or mode")
  })
})

it("a run in bf16 alone: training, evaluation, prediction and attention", { timeout: 120_000 }, () => {
  const folder = mkdtempSync(join(tmpdir(), "tessera-full-"))
  const run = join(folder, "run")
  const set = (...all: ReadonlyArray<string>) => all.flatMap((s) => ["--set", s])
  try {
    const settings = set("precision=bf16-full", "optimizer.b2=0.95", "optimizer.learningRate=0.01", "steps=30")
    const done = tessera("train", "mnist", ...tiny, ...settings, "--set", "data.test=mnist", "--run", run)
    assert.strictEqual(done.code, 0, done.err)
    const lines = readFileSync(join(run, "metrics.jsonl"), "utf8").trim().split("\n")
    const all = lines.map((line) => JSON.parse(line) as Record<string, unknown>)
    const losses = all.filter((line) => line["kind"] === "step").map((line) => line["loss"] as number)
    assert.isBelow(losses.at(-1)!, 0.9 * losses[0]!)

    const evaluated = tessera("evaluate", run, "--json")
    assert.strictEqual(evaluated.code, 0, evaluated.err)
    const { loss } = JSON.parse(evaluated.out) as Record<string, number>
    assert.strictEqual(loss, all.findLast((line) => line["kind"] === "evaluation")!["loss"])

    const attention = join(folder, "attention.png")
    const predicted = tessera("predict", run, join(run, "sample.png"), "--attention", attention, "--json")
    assert.strictEqual(predicted.code, 0, predicted.err)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
