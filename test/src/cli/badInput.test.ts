import { assert, describe, it } from "@effect/vitest"
import { gunzipSync } from "node:zlib"
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll } from "vitest"
import { sharedData } from "../shared.ts"
import { tessera, tiny } from "./tessera.ts"

const folder = mkdtempSync(join(tmpdir(), "tessera-cli-"))
const file = (name: string, content: string | Uint8Array) => {
  writeFileSync(join(folder, name), content)
  return join(folder, name)
}
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** One message on standard error, no stack trace, exit code 2. */
const refused = (expected: ReadonlyArray<string>, ...args: ReadonlyArray<string>) => {
  const { code, err, out } = tessera(...args)
  assert.strictEqual(code, 2, `${out}\n${err}`)
  for (const part of expected) assert.include(err, part)
  assert.notMatch(err, /\n\s+at /)
}

describe("recipes and settings that cannot be", () => {
  it.each([
    ["an unknown recipe", ['unknown recipe "mnits"', "did you mean mnist?"], ["train", "mnits"]],
    [
      "an unknown key",
      ["optimizer.learninRate", "did you mean optimizer.learningRate?"],
      ["explain", "mnist", "--set", "optimizer.learninRate=1"]
    ],
    [
      "an unknown optimizer",
      ['unknown optimizer "adamv"', "did you mean adamw?"],
      ["explain", "mnist", "--set", "optimizer.name=adamv"]
    ],
    [
      "an unknown preset",
      ['unknown preset "B/17"', "did you mean B/16?"],
      ["explain", "mnist", "--set", "model.preset=B/17"]
    ],
    [
      "a value out of range",
      ["optimizer.learningRate", "is -1"],
      ["explain", "mnist", "--set", "optimizer.learningRate=-1"]
    ],
    [
      "an unknown precision",
      ['precision: unknown precision "fp16"', 'did you mean "f16"?'],
      ["explain", "mnist", "--set", "precision=fp16"]
    ],
    [
      "heads that do not divide the width",
      ["model.heads", "hidden 64 is not divisible by heads 5", "4 or 8"],
      ["explain", "mnist", "--set", "model.hidden=64", "--set", "model.heads=5"]
    ],
    [
      "a patch that does not divide the picture",
      ["model.patch", "28 x 28 is not divisible by patch 5", "4 or 7"],
      ["explain", "mnist", "--set", "model.patch=5"]
    ],
    [
      "microbatches that do not divide the batch",
      ["microbatches", "3", "128"],
      ["explain", "mnist", "--set", "batchSize=128", "--set", "microbatches=3"]
    ],
    [
      "an unknown mesh axis",
      ['--mesh: unknown mesh axis "dta"', "did you mean data?"],
      ["explain", "mnist", "--mesh", "dta=2"]
    ],
    [
      "a mesh without numbers",
      ['--mesh: "data" gives no number of ranks', "write data=N"],
      ["explain", "mnist", "--mesh", "data"]
    ],
    [
      "an unknown strategy",
      ['--strategy: unknown strategy "fdsp"', "did you mean fsdp?"],
      ["explain", "mnist", "--mesh", "data=2", "--strategy", "fdsp"]
    ],
    [
      "a strategy without its mesh axis",
      ['strategy.sequence: needs several ranks along mesh axis "tensor"', "--mesh tensor=N"],
      ["explain", "mnist", "--strategy", "sequence"]
    ],
    [
      "a batch that the mesh cannot split",
      ['axis "batch" of size 128 in batch.examples does not divide by 3', "nearest legal counts: 2 or 4"],
      ["explain", "mnist", "--mesh", "data=3"]
    ],
    [
      "heads that the mesh cannot split",
      ['axis "heads"', "in parameter blocks/attention/query does not divide by 7"],
      ["explain", "mnist", "--mesh", "tensor=7"]
    ],
    [
      "layers that do not make stages",
      ['axis "layers" of size', "does not divide by 5 (mesh axis stage)"],
      ["explain", "mnist", "--mesh", "stage=5"]
    ],
    [
      "a model that is dropped though nothing runs meanwhile",
      ["strategy.fsdp.reshardAfterForward", 'use unit "block"'],
      [
        "explain",
        "mnist",
        "--mesh",
        "data=2",
        "--strategy",
        "fsdp-model",
        "--set",
        "strategy.fsdp.reshardAfterForward=true"
      ]
    ],
    [
      "a mesh for more ranks than there are",
      ["the recipe is for 2 ranks (data=2), this is one process", "tessera launch --ranks 2"],
      ["train", "mnist", "--set", "strategy.mesh.data=2", "--run", join(folder, "ranks")]
    ],
    ["an assignment without a value", ["--set", "is no assignment"], ["explain", "mnist", "--set", "epochs"]],
    ["a recipe file that is not there", ["nowhere.yaml", "cannot be read"], ["explain", "nowhere.yaml"]]
  ] as const)("%s", (_, expected, args) => refused(expected, ...args))

  it("a recipe file with an unknown key, and one that is no YAML", () => {
    refused(
      ["epoch: no such setting", "did you mean epochs?"],
      "explain",
      file("unknown.yaml", "extends: mnist\nepoch: 3\n")
    )
    refused(["broken.json is no JSON"], "explain", file("broken.json", "{"))
  })

  it("errors as JSON", () => {
    const { code, out } = tessera("explain", "mnits", "--json")
    assert.strictEqual(code, 2)
    const { error, exitCode, message } = JSON.parse(out) as Record<string, unknown>
    assert.deepStrictEqual([error, exitCode], ["RecipeError", 2])
    assert.include(message, "did you mean mnist?")
  })

  it("values come from where --config says", () => {
    const path = file("small.yaml", "extends: mnist\nmodel:\n  layers: 2\nepochs: 3\n")
    const { code, out } = tessera("explain", path, "--config", "--set", "optimizer.learningRate=3e-4", "--json")
    assert.strictEqual(code, 0)
    const all = JSON.parse(out) as ReadonlyArray<{ key: string; value: string; source: string }>
    const of = (key: string) => all.find((one) => one.key === key)
    assert.deepStrictEqual(of("optimizer.learningRate"), {
      key: "optimizer.learningRate",
      value: "0.0003",
      source: "--set"
    })
    assert.deepStrictEqual([of("model.layers")!.value, of("model.layers")!.source], ["2", `file ${path}`])
    assert.strictEqual(of("data.classes")!.source, "recipe mnist")
    assert.strictEqual(of("model.epsilon")!.source, "default")
  })
})

describe("data that cannot be read", () => {
  const train = (data: string, ...more: ReadonlyArray<string>) => [
    "train",
    "cifar10-small",
    "--data",
    data,
    "--run",
    join(folder, "data-run"),
    "--set",
    "steps=1",
    "--set",
    "data.test=null",
    "--set",
    "model.layers=1",
    "--set",
    "batchSize=8",
    ...more
  ]
  const fresh = () => rmSync(join(folder, "data-run"), { recursive: true, force: true })
  const shard = () => gunzipSync(readFileSync(sharedData("cifar10/cifar10-train-000000.tar.gz"))).subarray(0, 64 * 1024)

  it("no such shard, an empty one, a cut one, a damaged one", () => {
    fresh()
    refused(["missing.tar", "no such file"], ...train(`shards:${folder}/missing.tar`))
    fresh()
    refused(["empty.tar"], ...train(file("empty.tar", new Uint8Array(0))))
    fresh()
    refused(["cut.tar", "corrupt archive"], ...train(file("cut.tar", shard().subarray(0, 10_000))))
    fresh()
    const flipped = new Uint8Array(shard())
    flipped[3]! ^= 1
    refused(["flipped.tar", "corrupt archive"], ...train(file("flipped.tar", flipped)))
  })

  it("an unknown form of source", () => {
    fresh()
    refused(["nowhere:x", "idx:FOLDER"], ...train("nowhere:x"))
  })

  it("a label out of range names file, sample, label and classes", () => {
    fresh()
    const shards = sharedData("cifar10/cifar10-train-000000.tar.gz")
    refused(
      ["cifar10-train-000000.tar.gz", 'label "', "0 to 2 (3 classes)"],
      ...train(shards, "--set", "data.classes=3")
    )
  })
})

describe("runs and checkpoints that do not fit", () => {
  const run = join(folder, "run")
  beforeAll(() => {
    const { code, err } = tessera(
      "train",
      "mnist",
      ...tiny,
      "--set",
      "steps=3",
      "--set",
      "checkpoint.every=1",
      "--run",
      run
    )
    assert.strictEqual(code, 0, err)
  }, 60_000)
  const again = (...more: ReadonlyArray<string>) => [
    "train",
    "mnist",
    ...tiny,
    "--set",
    "steps=4",
    "--set",
    "checkpoint.every=1",
    "--run",
    run,
    ...more
  ]

  it("a folder that is not empty needs --resume", () => {
    refused([`the run folder ${run} is not empty`, "--resume"], ...again())
    refused(["there is no run to resume"], "train", "mnist", "--resume", "--run", join(folder, "nothing"))
    refused(["there is no run or checkpoint"], "evaluate", join(folder, "nothing"))
  })

  it("the checkpoint of another model is refused with the tensors that differ", () => {
    refused(["belongs to another model", "f32"], ...again("--resume", "--set", "model.hidden=32"))
  })

  it("a cut and a changed newest checkpoint are passed over with a warning", () => {
    const checkpoints = join(run, "checkpoints")
    const newest = readdirSync(checkpoints).toSorted().at(-1)!
    const tensors = readdirSync(join(checkpoints, newest)).find((name) => name.endsWith(".safetensors"))!
    const path = join(checkpoints, newest, tensors)
    const whole = readFileSync(path)
    const flipped = new Uint8Array(whole)
    flipped[flipped.length - 9]! ^= 4
    for (const bytes of [whole.subarray(0, whole.length - 10), flipped]) {
      writeFileSync(path, bytes)
      const { code, err } = tessera("evaluate", run, "--data", "mnist", "--json")
      assert.strictEqual(code, 0, err)
      assert.include(err, "warning")
      assert.include(err, newest)
    }
    const { code, err } = tessera(...again("--resume"))
    assert.strictEqual(code, 0, err)
    assert.include(err, "resuming after step 2")
  })

  it("a checkpoint that is named and damaged is an error", () => {
    mkdirSync(join(folder, "bad", "step-00000001"), { recursive: true })
    writeFileSync(join(folder, "bad", "step-00000001", "manifest.json"), "{}")
    refused(["manifest.json"], "evaluate", join(folder, "bad", "step-00000001"))
  })
})
