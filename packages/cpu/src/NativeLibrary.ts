/**
 * The native library: found in a cache, or compiled there by the system's C++ compiler on first need. One library per instruction set; the best
 * that this processor runs is chosen when it is loaded.
 */
import { createHash } from "node:crypto"
import { existsSync } from "node:fs"
import * as fs from "node:fs/promises"
import { spawn } from "node:child_process"
import { availableParallelism, homedir } from "node:os"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { CompileError } from "@tessera/core/Errors"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import koffi from "koffi"

const Isas = Schema.Record(
  Schema.String,
  Schema.Struct({ flags: Schema.Array(Schema.String), needs: Schema.Array(Schema.String) })
)

export interface LibraryOptions {
  /** Name from `native/isa.json`; the best that runs here unless given. */
  readonly isa?: string
  /** Where compiled libraries are kept; `~/.cache/tessera/native` unless given. */
  readonly cacheDir?: string
  /** The compiler: `c++` unless given. */
  readonly compiler?: string
  readonly onProgress?: (message: string) => void
}

const sourceDir = fileURLToPath(new URL("../native/", import.meta.url))

const failed = (reason: CompileError["reason"], detail: string) => new CompileError({ backend: "cpu", reason, detail })

const attempt = <A>(
  reason: CompileError["reason"],
  what: string,
  f: () => Promise<A>
): Effect.Effect<A, CompileError> =>
  Effect.tryPromise({ try: f, catch: (e) => failed(reason, `${what}: ${e instanceof Error ? e.message : String(e)}`) })

/** Feature names of this processor as Linux prints them. */
const processorFeatures = Effect.map(
  attempt("UnsupportedPlatform", "reading the processor's features", () => fs.readFile("/proc/cpuinfo", "utf8")),
  (text) => new Set((/^(?:flags|Features)\s*:\s*(.*)$/m.exec(text)?.[1] ?? "").split(/\s+/))
)

const readIsas = Effect.flatMap(
  attempt("SourceRejected", "native/isa.json", () => fs.readFile(path.join(sourceDir, "isa.json"), "utf8")),
  (text) =>
    Effect.mapError(Schema.decodeUnknownEffect(Schema.fromJsonString(Isas))(text), (e) =>
      failed("SourceRejected", `native/isa.json: ${e.message}`)
    )
)

/** All instruction sets that this processor runs, best first. */
export const runnableIsas: Effect.Effect<ReadonlyArray<string>, CompileError> = Effect.gen(function* () {
  const features = yield* processorFeatures
  const isas = yield* readIsas
  return Object.entries(isas).flatMap(([name, { needs }]) => {
    const isArm = name === "neon"
    if (isArm !== (process.arch === "arm64")) return []
    return needs.every((n) => features.has(n)) ? [name] : []
  })
})

const run = (
  command: string,
  args: ReadonlyArray<string>
): Promise<{ readonly code: number; readonly output: string }> =>
  new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] })
    let output = ""
    child.stdout.on("data", (d: Buffer) => (output += d.toString()))
    child.stderr.on("data", (d: Buffer) => (output += d.toString()))
    child.on("error", reject)
    child.on("close", (code) => resolve({ code: code ?? 1, output }))
  })

const noCompiler = (compiler: string) =>
  failed(
    "CompilerMissing",
    `the kernels are compiled once by the system's C++ compiler, and "${compiler}" was not found; install one (Debian, Ubuntu: "apt-get install g++"; Fedora: "dnf install gcc-c++") or run with --backend reference`
  )

/** A lock older than this was left by a process that died. */
const staleMilliseconds = 180_000

/** Takes the lock, or waits until whoever holds it has built the library or is gone. */
const waitForOthers = (target: string, lock: string) =>
  attempt("SourceRejected", `locking ${lock}`, async (): Promise<"mine" | "built"> => {
    for (;;) {
      if (existsSync(target)) return "built"
      const taken = await fs.mkdir(lock).then(
        () => true,
        () => false
      )
      if (taken) return "mine"
      const since = await fs.stat(lock).then(
        (s) => performance.timeOrigin + performance.now() - s.mtimeMs,
        () => 0
      )
      if (since > staleMilliseconds) await fs.rm(lock, { recursive: true, force: true })
      else await new Promise((resolve) => setTimeout(resolve, 100))
    }
  })

/** nodelete: koffi closes a library once nobody refers to its functions, which would unmap the code that threads of a pool still run. */
const linkFlags = ["-shared", "-pthread", "-Wl,-z,nodelete"]

/** Path of the compiled library, compiling it when the cache has none for these sources, flags and compiler. */
export const build = Effect.fn("NativeLibrary.build")(function* (options: LibraryOptions) {
  if (process.platform !== "linux" || (process.arch !== "x64" && process.arch !== "arm64")) {
    return yield* failed(
      "UnsupportedPlatform",
      `the native kernels run on Linux x64 and arm64; this is ${process.platform} ${process.arch}; use --backend reference for small programs`
    )
  }
  const isas = yield* readIsas
  const runnable = yield* runnableIsas
  const isa = options.isa ?? runnable[0]
  if (isa === undefined || isas[isa] === undefined) {
    return yield* failed(
      "UnsupportedPlatform",
      `instruction set "${isa ?? "none"}" is not known; this processor runs ${runnable.join(", ")}`
    )
  }
  const compiler = options.compiler ?? "c++"
  const names = (yield* attempt("SourceRejected", "native sources", () => fs.readdir(sourceDir)))
    .filter((n) => /\.(cpp|hpp|h)$/.test(n))
    .sort()
  const texts = yield* attempt("SourceRejected", "native sources", () =>
    Promise.all(names.map((n) => fs.readFile(path.join(sourceDir, n))))
  )
  const hash = createHash("sha256").update(JSON.stringify([isas[isa]!.flags, compiler, linkFlags, process.arch]))
  names.forEach((n, i) => hash.update(n).update(texts[i]!))
  const cache =
    options.cacheDir ?? path.join(process.env["XDG_CACHE_HOME"] ?? path.join(homedir(), ".cache"), "tessera", "native")
  const target = path.join(cache, `tessera-${isa}-${hash.digest("hex").slice(0, 20)}.so`)
  if (existsSync(target)) return target
  const lock = `${target}.lock`
  yield* attempt("SourceRejected", `creating ${cache}`, () => fs.mkdir(cache, { recursive: true }))
  const others = yield* waitForOthers(target, lock)
  if (others === "built") return target
  options.onProgress?.(`compiling the native kernels for ${isa} (once)`)
  const work = `${target}.${process.pid}.${Date.now().toString(36)}`
  yield* attempt("SourceRejected", `creating ${work}`, () => fs.mkdir(work, { recursive: true }))
  const version = yield* Effect.result(attempt("CompilerMissing", compiler, () => run(compiler, ["--version"])))
  if (version._tag === "Failure") {
    yield* attempt("SourceRejected", `removing ${work}`, async () => {
      await fs.rm(work, { recursive: true, force: true })
      await fs.rm(lock, { recursive: true, force: true })
    })
    return yield* noCompiler(compiler)
  }
  const units = names.filter((n) => n.endsWith(".cpp"))
  const objects = units.map((n) => path.join(work, n.replace(/\.cpp$/, ".o")))
  let done = 0
  const compile = (n: string, i: number) =>
    Effect.flatMap(
      attempt("SourceRejected", n, () =>
        run(compiler, [
          "-O3",
          "-std=c++20",
          "-fPIC",
          "-pthread",
          ...isas[isa]!.flags,
          "-c",
          path.join(sourceDir, n),
          "-o",
          objects[i]!
        ])
      ),
      (r) =>
        r.code === 0
          ? Effect.sync(() =>
              options.onProgress?.(`compiling the native kernels for ${isa} (once): ${++done} of ${units.length}`)
            )
          : Effect.fail(failed("SourceRejected", `${compiler} refused native/${n}:\n${r.output.slice(0, 2000)}`))
    )
  const compileAll = Effect.gen(function* () {
    yield* Effect.forEach(units, (n, i) => compile(n, i), { concurrency: availableParallelism(), discard: true })
    const library = path.join(work, "library.so")
    const linked = yield* attempt("SourceRejected", "linking", () =>
      run(compiler, [...linkFlags, ...objects, "-o", library])
    )
    if (linked.code !== 0)
      return yield* failed("SourceRejected", `linking the native kernels failed:\n${linked.output.slice(0, 2000)}`)
    // Atomic: another process that compiled at the same time made the same file.
    yield* attempt("SourceRejected", `writing ${target}`, () => fs.rename(library, target))
  })
  yield* Effect.ensuring(
    compileAll,
    Effect.promise(async () => {
      await fs.rm(work, { recursive: true, force: true })
      await fs.rm(lock, { recursive: true, force: true })
    })
  )
  return target
})

/** Typed functions of the library. Pointers are bigints. */
export interface Library {
  readonly isa: string
  readonly path: string
  readonly poolCreate: (threads: number) => unknown
  readonly poolDestroy: (pool: unknown) => void
  readonly memoryCreate: (bytes: number, kind: number) => bigint | null
  readonly memoryDestroy: (memory: bigint, bytes: number, kind: number) => void
  readonly memoryLive: () => number
  readonly memoryPeak: () => number
  readonly memoryResetPeak: () => void
  readonly write: (memory: bigint, from: Uint8Array, bytes: number) => void
  readonly read: (to: Uint8Array, memory: bigint, bytes: number) => void
  /** Runs off the main thread; gives the status of `ts_run`. */
  readonly run: (args: RunArguments) => Promise<number>
  /** Ranks of one machine: `ts_local_*` of the library's header. */
  readonly local: LocalFunctions
}

export interface LocalFunctions {
  readonly join: (
    path: string,
    rank: number,
    ranks: number,
    timeoutSeconds: number
  ) => { readonly comm: unknown } | string
  readonly leave: (comm: unknown, failed: boolean, detail: string) => void
  readonly destroy: (comm: unknown) => void
  readonly start: (comm: unknown, words: BigInt64Array, what: string) => boolean
  readonly cancel: (comm: unknown, ticket: number) => void
  /** Waits off the main thread. */
  readonly next: (comm: unknown) => Promise<{ readonly ticket: number; readonly status: number; readonly text: string }>
}

export interface RunArguments {
  readonly pool: unknown
  readonly plan: BigInt64Array
  readonly bindings: BigInt64Array
  readonly cancel: Int32Array
  readonly profile: Float64Array | null
  readonly error: BigInt64Array
}

const textOf = (bytes: Uint8Array): string => {
  const end = bytes.indexOf(0)
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end))
}

const localOf = (lib: ReturnType<typeof koffi.load>): LocalFunctions => {
  const join = lib.func(
    "void *ts_local_join(const char *path, int32_t rank, int32_t ranks, double timeout, _Out_ uint8_t *problem, uint64_t bytes)"
  )
  const leave = lib.func("void ts_local_leave(void *comm, int32_t failed, const char *detail)")
  const start = lib.func("int32_t ts_local_start(void *comm, const int64_t *words, uint64_t count, const char *what)")
  const next = lib.func(
    "int64_t ts_local_next(void *comm, _Out_ int32_t *status, _Out_ uint8_t *text, uint64_t textBytes)"
  )
  const textBytes = 1024
  return {
    join: (path, rank, ranks, timeout) => {
      const problem = new Uint8Array(textBytes)
      const comm: unknown = join(path, rank, ranks, timeout, problem, textBytes)
      return comm === null ? textOf(problem) : { comm }
    },
    leave: (comm, failed, detail) => void leave(comm, failed ? 1 : 0, detail),
    destroy: lib.func("void ts_local_destroy(void *comm)"),
    start: (comm, words, what) => start(comm, words, words.length, what) === 1,
    cancel: lib.func("void ts_local_cancel(void *comm, int64_t ticket)"),
    next: (comm) =>
      new Promise((resolve, reject) => {
        const status = new Int32Array(1)
        const text = new Uint8Array(textBytes)
        next.async(comm, status, text, textBytes, (error: Error | null, ticket: number | bigint) => {
          if (error === null) resolve({ ticket: Number(ticket), status: status[0]!, text: textOf(text) })
          else reject(error)
        })
      })
  }
}

/** Loads the library, compiling it first when needed. */
export const load = Effect.fn("NativeLibrary.load")(function* (options: LibraryOptions = {}) {
  const file = yield* build(options)
  return yield* Effect.try({
    try: (): Library => {
      const lib = koffi.load(file)
      const version = lib.func("int32_t ts_abi_version(void)")() as number
      if (version !== 1)
        throw new Error(`the library speaks version ${version} of its interface, this package version 1`)
      const inFlight = new Set<RunArguments>()
      const run = lib.func(
        "int32_t ts_run(void *pool, const int64_t *plan, uint64_t words, const int64_t *bindings, uint64_t bindingCount, const int32_t *cancel, double *profile, uint64_t profileCount, int64_t *error, const void *hooks)"
      )
      return {
        isa: lib.func("const char *ts_isa(void)")() as string,
        path: file,
        poolCreate: lib.func("void *ts_pool_create(int32_t)"),
        poolDestroy: lib.func("void ts_pool_destroy(void *)"),
        memoryCreate: lib.func("void *ts_memory_create(uint64_t, int32_t)"),
        memoryDestroy: lib.func("void ts_memory_destroy(void *, uint64_t, int32_t)"),
        memoryLive: lib.func("uint64_t ts_memory_live(void)"),
        memoryPeak: lib.func("uint64_t ts_memory_peak(void)"),
        memoryResetPeak: lib.func("void ts_memory_reset_peak(void)"),
        // Copied, not seen through an ArrayBuffer: a view would outlive the memory, and a second one at a reused address is undefined.
        write: lib.func("void ts_memory_copy(void *to, const uint8_t *from, uint64_t bytes)"),
        read: lib.func("void ts_memory_copy(_Out_ uint8_t *to, const void *from, uint64_t bytes)"),
        local: localOf(lib),
        run: (a) =>
          new Promise((resolve, reject) => {
            // The library reads these arrays until it is done; nobody else may hold them.
            inFlight.add(a)
            run.async(
              a.pool,
              a.plan,
              a.plan.length,
              a.bindings,
              a.bindings.length,
              a.cancel,
              a.profile,
              a.profile?.length ?? 0,
              a.error,
              null,
              (error: Error | null, status: number) => {
                inFlight.delete(a)
                if (error === null) resolve(status)
                else reject(error)
              }
            )
          })
      }
    },
    catch: (e) => failed("SourceRejected", `loading ${file}: ${e instanceof Error ? e.message : String(e)}`)
  })
})
