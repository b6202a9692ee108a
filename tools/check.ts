/**
 * Everything a change must pass: `pnpm check`. `--fast` leaves out the tests.
 * One line per station; what a failed station printed follows at the end. Exit code 1 when one failed.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { availableParallelism } from "node:os"
import { delimiter, join } from "node:path"
import { packages, root } from "./sources.ts"

interface Station {
  readonly name: string
  readonly command: ReadonlyArray<string>
  /** What of the output belongs on the station's line. */
  readonly counts?: RegExp
}

interface Outcome extends Station {
  readonly ok: boolean
  readonly seconds: number
  readonly output: string
}

const node = (...args: ReadonlyArray<string>) => [process.execPath, ...args]

const inspections: ReadonlyArray<Station> = [
  { name: "types", command: ["tsc", "-b"] },
  { name: "lint", command: ["oxlint", "--type-aware", "--quiet"] },
  ...packages.map((name) => ({
    name: `effect ${name}`,
    command: [
      "effect-tsgo",
      "diagnostics",
      "--project",
      `packages/${name}/tsconfig.json`,
      "--strict",
      "--severity",
      "error,warning",
      "--format",
      "text"
    ]
  })),
  { name: "format", command: ["oxfmt", "--check", "."] },
  { name: "house rules", command: node("tools/rules.ts"), counts: /^\d+ files, .*$/m }
]
const testCounts = /(?<=^\s+Tests\s+)\S.*$/m
/** Proofs of minutes, over many strategies and ranks: `pnpm test` runs them as well. */
const heavy = ["strategy", "ranks", "kit", "memory", "planner", "cli/launch.test.ts"].flatMap((name) => [
  "--exclude",
  name.endsWith(".ts") ? `test/src/${name}` : `test/src/${name}/**`
])
// The tests build the packages too, so they wait for the compiler; vitest brings its own two workers.
const tests: ReadonlyArray<Station> = [
  { name: "tests", command: ["vitest", "run", "--exclude", "test/src/docs/**", ...heavy], counts: testCounts },
  {
    name: "documentation",
    command: ["vitest", "run", "--reporter", "verbose", "test/src/docs"],
    counts: /\d+ documents call|\d+ ts blocks and \d+ examples|\d+ commands/g
  }
]

const running = new Map<string, ChildProcess>()
const live = process.stdout.isTTY === true
const started = performance.now()
const since = (from: number) => (performance.now() - from) / 1000
const clock = (seconds: number) => `${seconds.toFixed(1).padStart(6)} s`

const status = () => {
  if (live) process.stdout.write(`\r\u001b[K${clock(since(started))}  ${[...running.keys()].join(", ")}`)
}
const say = (line: string) => {
  process.stdout.write(live ? `\r\u001b[K${line}\n` : `${line}\n`)
  status()
}

const perform = (station: Station) =>
  new Promise<Outcome>((resolve) => {
    const from = performance.now()
    const [program, ...args] = station.command
    // A group of its own, so that an interrupt reaches the workers of the tools as well.
    const child = spawn(program!, args, {
      cwd: root,
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
      env: {
        ...process.env,
        NO_COLOR: "1",
        PATH: [join(root, "node_modules/.bin"), process.env["PATH"]].join(delimiter)
      }
    })
    let output = ""
    child.stdout.setEncoding("utf8").on("data", (text: string) => (output += text))
    child.stderr.setEncoding("utf8").on("data", (text: string) => (output += text))
    running.set(station.name, child)
    status()
    const end = (ok: boolean, why: string) => {
      if (!running.delete(station.name)) return
      const seconds = since(from)
      const counts = station.counts === undefined ? [] : (output.match(station.counts) ?? [])
      const note = counts.length === 0 ? "" : `: ${counts.join(", ").replace(" call", "")}`
      say(`${ok ? "ok  " : "FAIL"} ${clock(seconds)}  ${station.name}${note}`)
      resolve({ ...station, ok, seconds, output: output + why })
    }
    child.on("error", (cause) => end(false, `${program}: ${cause.message}\n`))
    child.on("close", (code, signal) => end(code === 0, signal === null ? "" : `ended by ${signal}\n`))
  })

const performAll = async (stations: ReadonlyArray<Station>, width: number): Promise<ReadonlyArray<Outcome>> => {
  const waiting = [...stations]
  const outcomes: Array<Outcome> = []
  const worker = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) outcomes.push(await perform(next))
  }
  await Promise.all(Array.from({ length: width }, worker))
  return outcomes
}

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    for (const child of running.values()) if (child.pid !== undefined) process.kill(-child.pid, "SIGTERM")
    process.exit(130)
  })
}

const fast = process.argv.includes("--fast")
const ticking = live ? setInterval(status, 200) : undefined
const outcomes = [
  ...(await performAll(inspections, Math.min(4, Math.max(2, availableParallelism())))),
  ...(fast ? [] : await performAll(tests, 1))
]
clearInterval(ticking)
if (live) process.stdout.write("\r\u001b[K")

const failed = outcomes.filter((outcome) => !outcome.ok)
for (const { command, name, output } of failed) {
  const shown = command.map((word) => (word === process.execPath ? "node" : word)).join(" ")
  console.log(`\n==== ${name}: ${shown}\n${output.trimEnd()}`)
}
console.log(
  `\n${outcomes.length - failed.length} of ${outcomes.length} stations passed in ${since(started).toFixed(0)} s${fast ? " (no tests: --fast)" : ""}`
)
process.exitCode = failed.length === 0 ? 0 : 1
