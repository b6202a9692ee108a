import { assert, describe, it } from "@effect/vitest"
import type { Facts } from "@tessera/cli/explain/Facts"
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
  const facts = JSON.parse(explained.out) as Facts
  assert.isAbove(facts.launches!, 100)
  assert.strictEqual(facts.stages[0]!.memory.parameters, facts.parameters * 4)
  assert.strictEqual(facts.stages[0]!.memory.optimizer, facts.parameters * 8)
})

describe("explain on a mesh", () => {
  const explain = (...args: ReadonlyArray<string>) => {
    const { code, err, out } = tessera(
      "explain",
      "vit-b16-nemo",
      "--set",
      "batchSize=64",
      "--set",
      "microbatches=1",
      ...args
    )
    assert.strictEqual(code, 0, err)
    return out
  }
  const P = 87_169_000

  it("says what one rank holds and sends", { timeout: 120_000 }, () => {
    const one = JSON.parse(explain("--mesh", "data=8,tensor=4", "--strategy", "fsdp", "--json")) as Facts
    assert.deepStrictEqual([one.ranks, one.mesh, one.stages.length], [32, "data=8, tensor=4", 1])
    const [{ memory, traffic }] = one.stages as readonly [Facts["stages"][number]]
    // Norms and biases of outputs are whole on every rank of `tensor`, and flat tensors are padded to 8 ranks.
    assert.approximately(memory.parameters, (4 * P) / 32, 0.05 * P)
    assert.strictEqual(memory.optimizer, 2 * memory.parameters)
    assert.isTrue(traffic.some((t) => t.collective === "allGather" && t.meshAxis === "data" && t.what === "gathered"))
    const text = explain("--mesh", "data=8,tensor=4", "--strategy", "fsdp")
    for (const line of [
      /^ranks +32$/m,
      /^memory of one rank: gathered parameters +[\d.]+ [KM]iB$/m,
      /^ {2}allGather over data, parameters \(f32\) +25 +\d+ +[\d.]+ MiB$/m,
      /^ {2}allReduce over tensor, values \(f32\) +\d+ /m,
      /^norms +f32 \d+ +f32 \d+$/m
    ])
      assert.match(text, line)
  })

  it("says so of every stage of a pipeline, and how long it waits", { timeout: 120_000 }, () => {
    const found = JSON.parse(
      explain(
        "--mesh",
        "stage=4",
        "--strategy",
        "interleaved",
        "--set",
        "microbatches=8",
        "--set",
        "strategy.virtualStages=3",
        "--json"
      )
    ) as Facts
    assert.approximately(found.bubble!, 3 / (3 * 8), 1e-12)
    assert.lengthOf(found.stages, 4)
    for (const { traffic } of found.stages) assert.isTrue(traffic.some((t) => t.collective === "send"))
    const alive = found.stages.map((s) => s.alive!)
    assert.deepStrictEqual(
      alive,
      alive.toSorted((a, b) => b - a)
    )
  })

  it("compares two configurations", { timeout: 120_000 }, () => {
    const text = explain(
      "--mesh",
      "data=8",
      "--strategy",
      "fsdp",
      "--diff",
      "strategy=zero1",
      "--diff",
      "precision=bf16"
    )
    assert.match(text, /with strategy=zero1, precision=bf16/)
    assert.match(text, /^memory of one rank: parameters +41\.6 MiB +332\.5 MiB +x 8\.00$/m)
    assert.match(text, /^residual stream +f32 +bf16$/m)
    assert.match(text, /^ranks +8 +8 +=$/m)
  })

  it("prints the program of one rank", { timeout: 120_000 }, () => {
    assert.match(explain("--mesh", "data=2", "--program"), /= allReduce\(.*"meshAxis":"data","count":2,"by":"sum"/)
  })
})
