/** The planner from the command line: what fits, what would, the picture, and what cannot be planned. */
import { afterAll, assert, it } from "@effect/vitest"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { tessera, tiny } from "./tessera.ts"

const folder = mkdtempSync(join(tmpdir(), "tessera-plan-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

interface Plan {
  readonly fits: boolean
  readonly mesh: string
  readonly change: string
  readonly memory: { readonly total: number }
  readonly stepSeconds: number
  readonly samplesPerSecond: number
  readonly bubble: number
  readonly better?: Plan
}

it("says what fits, how fast, and draws it", { timeout: 120_000 }, () => {
  const picture = join(folder, "plan.html")
  const common = ["plan", "mnist", ...tiny, "--devices", "4xA100-80G"]
  const done = tessera(...common, "--samples", "60000", "--picture", picture)
  assert.strictEqual(done.code, 0, done.err)
  assert.match(done.out, /mnist on 4 x A100-80G, data=4: fits: .* of 78\.00 GiB/)
  for (const part of ["collectives over data", "samples a second", "time of an epoch"]) assert.include(done.out, part)
  const page = readFileSync(picture, "utf8")
  for (const part of ["<svg", "every rank", "The plan fits", "activations"]) assert.include(page, part)
  assert.notInclude(page, "http")

  const staged = tessera(
    ...common,
    "--mesh",
    "stage=2,data=2",
    "--set",
    "microbatches=4",
    "--picture",
    picture,
    "--json"
  )
  assert.strictEqual(staged.code, 0, staged.err)
  const plan = JSON.parse(staged.out) as Plan
  assert.closeTo(plan.bubble, 1 / 4, 1e-12)
  assert.include(readFileSync(picture, "utf8"), "stage 1")
})

it("finds the smallest change that fits", { timeout: 120_000 }, () => {
  const done = tessera(
    ...["plan", "vit-g14-rosetta", "--devices", "8xV100-32G", "--json", "--set", "batchSize=64"],
    ...["--set", "microbatches=1", "--set", "recompute=none", "--set", "precision=f16"]
  )
  assert.strictEqual(done.code, 0, done.err)
  const plan = JSON.parse(done.out) as Plan
  assert.isFalse(plan.fits)
  assert.isTrue(plan.better!.fits)
  assert.isBelow(plan.better!.memory.total, 30 * 2 ** 30)
  assert.match(plan.better!.change, /optimizer state/)
})

it("searches meshes, fastest first", { timeout: 120_000 }, () => {
  const done = tessera("plan", "mnist", ...tiny, "--devices", "4xA100-80G", "--search", "--json")
  assert.strictEqual(done.code, 0, done.err)
  const { plans } = JSON.parse(done.out) as { readonly plans: ReadonlyArray<Plan> }
  assert.isAbove(plans.length, 3)
  assert.isTrue(plans.every((p) => p.fits))
  const speeds = plans.map((p) => p.samplesPerSecond)
  assert.deepStrictEqual(
    speeds,
    speeds.toSorted((a, b) => b - a)
  )
  assert.isTrue(plans.some((p) => p.mesh.includes("tensor=2")))
})

it("says what is wrong with what was asked", { timeout: 120_000 }, () => {
  const cases: ReadonlyArray<readonly [ReadonlyArray<string>, RegExp]> = [
    [["--devices", "8xA100-80"], /unknown device "A100-80"; did you mean A100-80G\?/],
    [["--devices", "A100-80G"], /"A100-80G" is no number of devices; write NUMBERxDEVICE/],
    [["--devices", "8xA100-80G", "--mesh", "data=4"], /data=4 are 4 ranks, 8xA100-80G are 8 devices/],
    [["--devices", "4096xA100-80G"], /axis "batch" .* does not divide by 4096/]
  ]
  for (const [args, message] of cases) {
    const done = tessera("plan", "mnist", ...tiny, ...args)
    assert.strictEqual(done.code, 2, `${args.join(" ")}\n${done.err}`)
    assert.match(done.err, message)
    assert.notMatch(done.err, /\n {4}at /)
  }
})
