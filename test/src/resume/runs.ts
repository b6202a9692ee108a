/** Runs of a tiny model, killed and resumed, and their parameters. */
import { spawnSync } from "node:child_process"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { bin, node, start, tiny } from "../cli/tessera.ts"

export const stepCount = 40

const args = (folder: string, resume: boolean) => [
  "train",
  "mnist",
  ...tiny,
  "--threads",
  "1",
  "--json",
  "--run",
  folder,
  "--set",
  `steps=${stepCount}`,
  "--set",
  "checkpoint.every=1",
  ...(resume ? ["--resume"] : [])
]

/** Trains to the end without a kill. */
export const finish = (folder: string, resume: boolean): void => {
  const done = spawnSync(node, [bin, ...args(folder, resume)], { encoding: "utf8", timeout: 110_000 })
  if (done.status !== 0) throw new Error(`exit code ${done.status}: ${done.stderr}`)
}

const stepsDone = (output: string): number =>
  output.split("\n").filter((line) => line.startsWith('{"kind":"step"')).length

export type Moment =
  | { readonly kind: "step"; readonly steps: number; readonly millis: number }
  | { readonly kind: "write" }

const isWriting = (folder: string): boolean => {
  try {
    return readdirSync(join(folder, "checkpoints")).some((name) => name.includes(".partial-"))
  } catch {
    return false
  }
}

/**
 * Starts or resumes the run and kills it (SIGKILL) some milliseconds after some steps, or while a checkpoint is being written. Gives whether the run was
 * over before, and whether an unfinished checkpoint was left.
 */
export const kill = async (
  folder: string,
  resume: boolean,
  moment: Moment
): Promise<{ readonly over: boolean; readonly inWrite: boolean }> => {
  const { child, ended, output } = start(...args(folder, resume))
  let over = false
  void ended.then(() => (over = true))
  const until = async (condition: () => boolean) => {
    while (!over && !condition()) await new Promise((next) => setImmediate(next))
  }
  if (moment.kind === "step") {
    await until(() => stepsDone(output()) >= moment.steps)
    await new Promise((next) => setTimeout(next, moment.millis))
  } else {
    await until(() => stepsDone(output()) >= 1)
    await until(() => isWriting(folder))
  }
  child.kill("SIGKILL")
  const { signal } = await ended
  return { over: signal !== "SIGKILL", inWrite: isWriting(folder) }
}

/** Hashes of every tensor of the last checkpoint, by kind and name, and the state beside them. */
export const final = (folder: string) => {
  const newest = readdirSync(join(folder, "checkpoints"))
    .filter((name) => name.startsWith("step-"))
    .toSorted()
    .at(-1)!
  const manifest = JSON.parse(readFileSync(join(folder, "checkpoints", newest, "manifest.json"), "utf8")) as {
    readonly tensors: ReadonlyArray<{
      readonly kind: string
      readonly name: string
      readonly slices: ReadonlyArray<{ readonly sha256: string }>
    }>
    readonly state: { readonly position: unknown }
  }
  return {
    newest,
    position: manifest.state.position,
    tensors: Object.fromEntries(manifest.tensors.map((t) => [`${t.kind} ${t.name}`, t.slices.map((s) => s.sha256)]))
  }
}

/** Losses of all steps of the run, in order. */
export const losses = (folder: string): ReadonlyArray<number> =>
  readFileSync(join(folder, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { readonly kind: string; readonly loss: number })
    .flatMap((line) => (line.kind === "step" ? [line.loss] : []))
