import { assert, it } from "@effect/vitest"
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { tessera, tiny } from "./tessera.ts"

it("a run leaves everything behind; evaluate and predict agree with it", { timeout: 120_000 }, () => {
  const folder = mkdtempSync(join(tmpdir(), "tessera-run-"))
  const run = join(folder, "run")
  try {
    const done = tessera("train", "mnist", ...tiny, "--set", "data.test=mnist", "--set", "steps=30", "--run", run)
    assert.strictEqual(done.code, 0, done.err)
    for (const part of ["img/s", "left", "validation at step 30", `tessera evaluate ${run}`, `tessera predict ${run}`])
      assert.include(done.out, part)
    for (const name of [
      "recipe.json",
      "metrics.jsonl",
      "events",
      "checkpoints",
      "curves.svg",
      "samples.png",
      "sample.png",
      "report.html"
    ])
      assert.isTrue(existsSync(join(run, name)), name)
    const lines = readFileSync(join(run, "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>)
    const validation = lines.findLast((line) => line["kind"] === "evaluation")!

    const evaluated = tessera("evaluate", run, "--json")
    assert.strictEqual(evaluated.code, 0, evaluated.err)
    const { accuracy, count, loss } = JSON.parse(evaluated.out) as Record<string, number>
    assert.deepStrictEqual([accuracy, loss, count], [validation["accuracy"], validation["loss"], 10_000])

    const attention = join(folder, "attention.png")
    const predicted = tessera("predict", run, join(run, "sample.png"), "--top", "2", "--attention", attention, "--json")
    assert.strictEqual(predicted.code, 0, predicted.err)
    const { top } = JSON.parse(predicted.out) as { top: ReadonlyArray<{ probability: number }> }
    assert.strictEqual(top.length, 2)
    assert.isAtLeast(top[0]!.probability, top[1]!.probability)
    assert.deepStrictEqual([...readFileSync(attention).subarray(1, 4)], [...Buffer.from("PNG")])
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})

it("models and explain know every recipe", { timeout: 120_000 }, () => {
  const models = JSON.parse(tessera("models", "--json").out) as ReadonlyArray<{
    name: string
    parameters: number
    parametersByHead: Record<string, number>
  }>
  assert.strictEqual(models.find((m) => m.name === "B/16")!.parametersByHead["linear1000"], 86_567_656)
  for (const recipe of [
    "mnist",
    "cifar10-small",
    "vit-b16-nemo",
    "vit-b16-rosetta",
    "vit-g14-rosetta",
    "vit-s16-bigvision"
  ]) {
    const { code, err } = tessera("explain", recipe, "--config", "--json")
    assert.strictEqual(code, 0, err)
  }
  const explained = tessera("explain", "vit-b16-nemo", "--json", "--set", "batchSize=8", "--set", "microbatches=1")
  assert.strictEqual(explained.code, 0, explained.err)
  const facts = JSON.parse(explained.out) as { parameters: number; kernels: number; memory: Record<string, number> }
  assert.isAbove(facts.kernels, 100)
  assert.strictEqual(facts.memory["parameters"], facts.parameters * 4)
  assert.strictEqual(facts.memory["optimizer"], facts.parameters * 8)
})
