/**
 * Speed of whole training steps, beside PyTorch and beside this machine's ceiling, in one run: ours and the peer alternate, so both see the same
 * machine. `pnpm bench`, or `pnpm bench --rounds 3 --only vit_s32 --profile`.
 */
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import { Backend } from "@tessera/core/services/Backend"
import * as Effect from "effect/Effect"
import { execFileSync } from "node:child_process"
import { availableParallelism, cpus } from "node:os"
import { parseArgs } from "node:util"
import { ceiling } from "./ceiling.ts"
import type { Case, Timing } from "./models.ts"
import { byKernel, time } from "./models.ts"
import * as Peer from "./peer.ts"

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "2" },
    steps: { type: "string", default: "3" },
    only: { type: "string", default: "" },
    profile: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    "no-peer": { type: "boolean", default: false }
  }
})
const [rounds, steps] = [Number(values.rounds), Number(values.steps)]
const threads = availableParallelism()

const cases: ReadonlyArray<Case> = [
  { model: "vit_b16", batch: 8, dtype: "fp32" },
  { model: "vit_b16", batch: 8, dtype: "bf16" },
  { model: "vit_ti16", batch: 32, dtype: "fp32" },
  { model: "vit_ti16", batch: 32, dtype: "bf16" },
  { model: "vit_s32", batch: 256, dtype: "fp32" },
  { model: "vit_s32", batch: 256, dtype: "bf16" }
]

const median = (xs: ReadonlyArray<number>): number => {
  const sorted = [...xs].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

const say = (line: string) => {
  if (!values.json) console.log(line)
}

const commit = (() => {
  try {
    return execFileSync("git", ["rev-parse", "--short", "HEAD"], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"]
    }).trim()
  } catch {
    return "unknown"
  }
})()

const one = Effect.fnUntraced(function* (c: Case, peaks: { readonly fp32: number; readonly bf16: number }) {
  const ours: Array<number> = []
  const theirs: Array<number> = []
  let last: Timing | null = null
  for (let r = 0; r < rounds; r++) {
    last = yield* time(c, steps)
    ours.push(...last.stepSeconds.map((s) => c.batch / s))
    if (values["no-peer"] || !Peer.isPresent()) continue
    const peer = yield* Effect.promise(() => Peer.run(c, steps, threads))
    if (peer !== null) theirs.push(peer.imagesPerSecond, peer.imagesPerSecondMedian)
  }
  const rate = median(ours)
  const gflops = (rate * last!.flopsPerImage) / 1e9
  const ratio = theirs.length === 0 ? null : rate / median(theirs)
  const line = {
    case: `${c.model} batch ${c.batch} ${c.dtype}`,
    imagesPerSecond: rate,
    spread: [Math.min(...ours), Math.max(...ours)],
    gflops,
    ceilingShare: gflops / peaks[c.dtype],
    peer: theirs.length === 0 ? null : median(theirs),
    ratio,
    traceSeconds: last!.traceSeconds,
    compileSeconds: last!.compileSeconds,
    arenaMiB: last!.arenaBytes / 2 ** 20,
    commit
  }
  if (values.json) console.log(JSON.stringify(line))
  say(
    `${line.case.padEnd(26)} ${rate.toFixed(2).padStart(8)} images/s (${line.spread.map((s) => s.toFixed(2)).join(" to ")})  ${gflops.toFixed(0).padStart(4)} GFLOP/s = ${(100 * line.ceilingShare).toFixed(0)} % of the ceiling${
      line.peer === null ? "" : `  PyTorch ${line.peer.toFixed(2)}, ratio ${ratio!.toFixed(2)}`
    }  compiled in ${(line.traceSeconds + line.compileSeconds).toFixed(2)} s`
  )
  if (values.profile)
    for (const [name, ms] of byKernel(last!.profile).slice(0, 20)) say(`${ms.toFixed(1).padStart(10)} ms  ${name}`)
})

const main = Effect.gen(function* () {
  const backend = yield* Backend
  say(
    `${cpus()[0]?.model ?? "processor"}, ${backend.description}, commit ${commit}, ${new Date().toISOString().slice(0, 10)}`
  )
  const peaks = { fp32: yield* ceiling("f32"), bf16: yield* ceiling("bf16") }
  say(
    `ceiling (product of two 2048 x 2048 matrices): f32 ${peaks.fp32.toFixed(0)}, bf16 ${peaks.bf16.toFixed(0)} GFLOP/s`
  )
  if (!values["no-peer"] && !Peer.isPresent()) say("the peer's script is not here; set TESSERA_PEER to its folder")
  for (const c of cases) if (c.model.includes(values.only)) yield* one(c, peaks)
})

await Effect.runPromise(Effect.provide(main, CpuBackend.layerWith({ threads, onProgress: say })))
