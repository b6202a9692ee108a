/** Runs the real command in a process of its own. */
import { spawn, spawnSync } from "node:child_process"
import { resolve } from "node:path"

const root = resolve(import.meta.dirname, "../../..")
export const node = resolve(root, "node_modules/.bin/node")
export const bin = resolve(root, "packages/cli/bin/tessera.mjs")

export interface Finished {
  readonly code: number | null
  readonly out: string
  readonly err: string
}

/** Runs to the end. */
export const tessera = (...args: ReadonlyArray<string>): Finished => {
  const done = spawnSync(node, [bin, ...args], {
    encoding: "utf8",
    env: { ...process.env, NO_COLOR: "1" },
    timeout: 110_000
  })
  return { code: done.status, out: done.stdout, err: done.stderr }
}

/** Starts it; the caller ends or awaits it. */
export const start = (...args: ReadonlyArray<string>) => {
  const child = spawn(node, [bin, ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, NO_COLOR: "1" }
  })
  let [out, err] = ["", ""]
  child.stdout.on("data", (chunk: Buffer) => (out += chunk.toString()))
  child.stderr.on("data", (chunk: Buffer) => (err += chunk.toString()))
  const ended = new Promise<Finished & { readonly signal: string | null }>((done) => {
    child.on("close", (code, signal) => done({ code, signal, out, err }))
  })
  return { child, ended, output: () => out }
}

/** Settings of a model that trains in milliseconds. */
export const tiny: ReadonlyArray<string> = [
  "model.patch=14",
  "model.hidden=16",
  "model.mlp=32",
  "model.heads=2",
  "model.layers=2",
  "model.dropout=0.1",
  "batchSize=32",
  "ema=0.9",
  "schedule.warmup=4",
  "data.test=null"
].flatMap((s) => ["--set", s])
