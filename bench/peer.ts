/** The PyTorch script that measures the same step, if it and PyTorch are on this machine. */
import { spawn } from "node:child_process"
import { existsSync } from "node:fs"
import * as path from "node:path"
import type { Case } from "./models.ts"

const folder = process.env["TESSERA_PEER"] ?? path.join(import.meta.dirname, "../../shared/peers/torch-cpu")
const script = path.join(folder, "bench_vit.py")

export const isPresent = (): boolean => existsSync(script)

/** Seconds of every timed step are not printed by the script: the fastest and the median are. */
export interface PeerTiming {
  readonly imagesPerSecond: number
  readonly imagesPerSecondMedian: number
  readonly version: string
}

/** Runs one configuration at the peer's best settings (its env.sh). null when PyTorch is not installed. */
export const run = (c: Case, steps: number, threads: number): Promise<PeerTiming | null> =>
  new Promise((resolve) => {
    const command = `. ./env.sh; exec /usr/bin/python3 bench_vit.py --model ${c.model} --batch ${c.batch} --dtype ${c.dtype} --steps ${steps} --warmup 1 --threads ${threads}`
    const child = spawn("bash", ["-c", command], {
      cwd: folder,
      env: { ...process.env, THREADS: String(threads) },
      stdio: ["ignore", "pipe", "ignore"]
    })
    let text = ""
    child.stdout.on("data", (d: Buffer) => (text += d.toString()))
    child.on("error", () => resolve(null))
    child.on("close", () => {
      const line = text.trim().split("\n").at(-1) ?? ""
      if (!line.startsWith("{")) return resolve(null)
      const found = JSON.parse(line) as Record<string, number | string>
      resolve({
        imagesPerSecond: Number(found["images_per_s"]),
        imagesPerSecondMedian: Number(found["images_per_s_median"]),
        version: String(found["version"])
      })
    })
  })
