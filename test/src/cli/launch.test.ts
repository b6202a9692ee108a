/** Ranks that are processes: the same losses as one process, all end when one is killed, and go on where they stopped. */
import { afterAll, assert, it } from "@effect/vitest"
import { spawnSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { start, tessera, tiny } from "./tessera.ts"

const folder = mkdtempSync(join(tmpdir(), "tessera-launch-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const settings = [...tiny, "--set", "precision=f32"]

const losses = (run: string): ReadonlyMap<number, number> =>
  new Map(
    readFileSync(join(run, "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { readonly kind: string; readonly step: number; readonly loss: number })
      .filter(({ kind }) => kind === "step")
      .map(({ loss, step }) => [step, loss])
  )

const one = join(folder, "one")
const alone = () => {
  const done = tessera("train", "mnist", ...settings, "--set", "steps=20", "--run", one)
  assert.strictEqual(done.code, 0, done.err)
  return losses(one)
}

/** Processes of ranks of a run. */
const ranksOf = (run: string): ReadonlyArray<number> =>
  spawnSync("pgrep", ["-f", `train mnist .*--run ${run}( |$)`], { encoding: "utf8" })
    .stdout.split("\n")
    .filter((line) => line !== "")
    .map(Number)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/environ`, "utf8").includes("TESSERA_RANK=")
      } catch {
        return false
      }
    })
    .toSorted((a, b) => a - b)

it("two ranks train as one process does, whatever they share", { timeout: 180_000 }, () => {
  const truth = alone()
  for (const strategy of [
    [],
    ["strategy.mesh.tensor=2"],
    ["strategy.mesh.stage=2", "microbatches=4"],
    ["strategy.mesh.data=2", "strategy.zero=2"]
  ]) {
    const run = join(folder, `two ${strategy[0] ?? "data"}`.replaceAll(/[ .=]/g, "-"))
    const sets = strategy.flatMap((s) => ["--set", s])
    const done = tessera(
      "launch",
      "--ranks",
      "2",
      "--",
      "train",
      "mnist",
      ...settings,
      ...sets,
      "--set",
      "steps=20",
      "--run",
      run
    )
    assert.strictEqual(done.code, 0, done.err)
    const found = losses(run)
    assert.strictEqual(found.size, 20)
    for (const [step, loss] of found)
      assert.closeTo(loss / truth.get(step)!, 1, 1e-4, `${strategy.join()} step ${step}`)
  }
})

it(
  "a killed rank is named at once, and the job begins again from its newest checkpoint",
  { timeout: 120_000 },
  async () => {
    const run = join(folder, "killed")
    const { child, ended, output } = start(
      ...["launch", "--ranks", "2", "--restarts", "1", "--", "train", "mnist", ...settings],
      ...["--set", "steps=1000", "--set", "checkpoint.every=100", "--run", run]
    )
    while (!/step +[2-9]\d\d\//.test(output()) && child.exitCode === null)
      await new Promise((resolve) => setTimeout(resolve, 20))
    const ranks = ranksOf(run)
    assert.strictEqual(ranks.length, 2)
    const killed = performance.now()
    process.kill(ranks[1]!, "SIGKILL")
    while (ranksOf(run).includes(ranks[0]!)) await new Promise((resolve) => setTimeout(resolve, 50))
    assert.isBelow(performance.now() - killed, 10_000)
    const done = await ended
    assert.strictEqual(done.code, 0, done.err)
    assert.match(done.err, /RankLost at rank 0: rank 1 \(process \d+\) has died/)
    assert.match(
      done.err,
      /rank [01] (was killed by SIGKILL|failed with exit code 1); beginning again from the newest checkpoint, 0 restarts left/
    )
    assert.match(done.err, /resuming after step \d+/)
    assert.strictEqual(losses(run).size, 1000)
  }
)

it(
  "an interrupted job stops after the same step on all ranks and is resumed on another number of them",
  { timeout: 120_000 },
  async () => {
    const run = join(folder, "interrupted")
    const common = ["train", "mnist", ...settings, "--set", "steps=1500", "--run", run]
    const { child, ended, output } = start("launch", "--ranks", "2", "--", ...common)
    while (!/step +\d\d+\//.test(output()) && child.exitCode === null)
      await new Promise((resolve) => setTimeout(resolve, 20))
    child.kill("SIGINT")
    const done = await ended
    assert.strictEqual(done.code, 130, done.err)
    assert.match(done.err, /interrupted after step \d+; saved in /)
    const resumed = tessera(...common, "--resume")
    assert.strictEqual(resumed.code, 0, resumed.err)
    assert.match(resumed.err, /resuming after step \d+/)
    assert.strictEqual(losses(run).size, 1500)
  }
)

it("says what is wrong with what was asked", { timeout: 120_000 }, () => {
  const launch = (...args: ReadonlyArray<string>) => tessera("launch", ...args)
  const cases: ReadonlyArray<readonly [ReadonlyArray<string>, RegExp]> = [
    [["--ranks", "0", "--", "train", "mnist"], /--ranks 0; 1 to 64 ranks/],
    [["--ranks", "2", "--", "evaluate", "x"], /ranks cannot evaluate; they train/],
    [["--ranks", "2", "--restarts", "-1", "--", "train", "mnist"], /--restarts/],
    [
      ["--ranks", "3", "--", "train", "mnist", "--set", "strategy.mesh.tensor=2", "--run", join(folder, "never")],
      /the recipe is for 2 ranks \(tensor=2\), 3 were started; --ranks 2/
    ],
    [["--ranks", "2", "--", "train", "mnist", "--run", one], /the run folder .* is not empty/]
  ]
  for (const [args, message] of cases) {
    const done = launch(...args)
    assert.strictEqual(done.code, 2, `${args.join(" ")}\n${done.err}`)
    assert.match(done.err, message)
    assert.notMatch(done.err, /\n {4}at /)
  }
  const lonely = tessera("train", "mnist", "--set", "strategy.mesh.tensor=2", "--run", join(folder, "never"))
  assert.strictEqual(lonely.code, 2)
  assert.match(
    lonely.err,
    /the recipe is for 2 ranks \(tensor=2\), this is one process; start it by tessera launch --ranks 2 -- train/
  )
})
