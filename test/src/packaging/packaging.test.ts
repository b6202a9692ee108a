/** The packages as others get them: packed, installed with npm into an empty folder elsewhere, compiled against and run. */
import { spawn } from "node:child_process"
import { globSync } from "node:fs"
import { mkdtemp, readdir, readFile, realpath, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { basename, delimiter, join, resolve } from "node:path"
import { afterAll, beforeAll, describe, expect, it } from "vitest"

const root = resolve(import.meta.dirname, "../../..")
const bin = join(root, "node_modules/.bin")
const packages = globSync("packages/*/package.json", { cwd: root })
  .map((path) => path.split("/")[1]!)
  .toSorted()

/** Runs a program to its end, the repository's Node first on the path. Fails with all it printed. */
const run = (cwd: string, program: string, ...args: ReadonlyArray<string>): Promise<string> =>
  new Promise((done, fail) => {
    const env = Object.fromEntries(
      Object.entries(process.env).filter(
        ([name]) => !/^(npm_(?!config_registry)|pnpm_|VITEST|NODE_(OPTIONS|ENV|PATH)$)/i.test(name)
      )
    )
    const child = spawn(program, args, {
      cwd,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...env, NO_COLOR: "1", PATH: [join(folder, "bin"), env["PATH"]].join(delimiter) }
    })
    let output = ""
    let errors = ""
    child.stdout.setEncoding("utf8").on("data", (text: string) => (output += text))
    child.stderr.setEncoding("utf8").on("data", (text: string) => (errors += text))
    child.on("error", fail)
    child.on("close", (code, signal) =>
      code === 0
        ? done(output)
        : fail(new Error(`${program} ${args.join(" ")}: ${signal ?? `exit code ${code}`}\n${output}${errors}`))
    )
  })

const program = `
import { Axis, Evaluate, Gradient, HostArray, Program, Tensor as T } from "@tessera/core"
import { Backend } from "@tessera/core/services/Backend"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Effect from "effect/Effect"

// The gradient of sum(x * x) is 2x: by the evaluator's loops and by the native kernels.
const x = T.input({ axes: Axis.list({ batch: 2, feature: 3 }), dtype: "f32" }) as T.Tensor<"batch" | "feature">
const loss: T.Tensor<never> = T.sum(T.mul(x, x), "batch", "feature")
// @ts-expect-error: x has no such axis
export const wrong = () => T.sum(x, "channel")

const step = Gradient.valueAndGrad(Program.body([x], [loss]), [0])
const values = HostArray.make(x.type.axes, "f32", [1, 2, 3, 4, 5, 6])
const [, expected] = Evaluate.runUnsafe(step, [values])

const onCpu = Effect.gen(function* () {
  const backend = yield* Backend
  const executable = yield* backend.compile(Program.make([...step.inputs], [...step.outputs]))
  const input = yield* backend.allocate(x.type)
  yield* backend.write(input, HostArray.toBytes(values))
  const gradient = (yield* executable.run([input]))[1]!
  return HostArray.fromBytes(gradient.type.axes, gradient.type.dtype, yield* backend.read(gradient))
})

const gradient = await Effect.runPromise(Effect.scoped(onCpu).pipe(Effect.provide(CpuBackend.layer)))
console.log(JSON.stringify([...HostArray.reorder(gradient, x.type.axes).data]), HostArray.distance(gradient, expected!))
`

const threads = `
import { Augment, Augmenter, Image } from "@tessera/data"
import * as Effect from "effect/Effect"

const pipeline = Augment.pipeline({ height: 8, width: 8, channels: 3, operations: [Augment.resizeSquare(8)], normalization: Augment.halfNormalization })
const image = Image.raw(1000, 1000, 3, new Uint8Array(3_000_000).fill(255))
const out = await Effect.runPromise(
  Effect.gen(function* () {
    const augmenter = yield* Augmenter.Augmenter
    const out = augmenter.allocate(192)
    yield* augmenter.applyAll([{ image, at: AT, key: "white", origin: "memory" }], pipeline, out)
    return out
  }).pipe(Effect.provide(Augmenter.Augmenter.layerWorkers(1)))
)
console.log(out.buffer instanceof SharedArrayBuffer, out.every((v) => v === 1))
`

const folder = await mkdtemp(join(tmpdir(), "tessera-packed-"))
afterAll(() => rm(folder, { recursive: true, force: true }))

beforeAll(async () => {
  const tarballs = join(folder, "tarballs")
  const bare = join(folder, "bin")
  await run(folder, "mkdir", tarballs, bare, "app")
  // Nothing of the checkout but Node itself.
  await symlink(await realpath(process.execPath), join(bare, "node"))
  await run(root, join(bare, "node"), "tools/build.ts")
  await run(
    root,
    "npx",
    "--yes",
    "pnpm@12",
    "--recursive",
    "--filter",
    "./packages/*",
    "pack",
    "--pack-destination",
    tarballs
  )
  const dependencies = Object.fromEntries(
    (await readdir(tarballs)).map((file) => [
      `@tessera/${/^tessera-(.+)-\d/.exec(file)?.[1]}`,
      `file:${join(tarballs, file)}`
    ])
  )
  await writeFile(
    join(folder, "app/package.json"),
    JSON.stringify({
      private: true,
      type: "module",
      // Who uses the testing kit brings fast-check.
      dependencies: { ...dependencies, "fast-check": "4.10.2" }
    })
  )
  await run(join(folder, "app"), "npm", "install", "--prefer-offline", "--no-audit", "--no-fund", "--loglevel=error")
}, 180_000)

const app = join(folder, "app")
const installed = (name: string) => join(app, "node_modules/@tessera", name)

describe("the packed packages", () => {
  it("have no workspace versions, and exports that exist for every module", async () => {
    expect((await readdir(join(app, "node_modules/@tessera"))).toSorted()).toEqual(packages)
    for (const name of packages) {
      const text = await readFile(join(installed(name), "package.json"), "utf8")
      expect(text).not.toMatch(/workspace:|catalog:/)
      const sources = globSync("**/*.ts", { cwd: join(root, "packages", name, "src") })
      const compiled = new Set(globSync("**/*.{js,d.ts}", { cwd: join(installed(name), "dist") }))
      const wanted = sources.flatMap((path) => [path.replace(/ts$/, "js"), path.replace(/ts$/, "d.ts")])
      expect(
        wanted.filter((path) => !compiled.has(path)),
        name
      ).toEqual([])
      expect(
        [...compiled].filter((path) => !wanted.includes(path)),
        `${name}: compiled files without a source`
      ).toEqual([])
    }
  })

  it("hold the native sources, and the workers as .js", async () => {
    const native = (folder: string) => globSync("*.{cpp,hpp,h,json}", { cwd: join(folder, "native") }).toSorted()
    expect(native(installed("cpu"))).toEqual(native(join(root, "packages/cpu")))
    expect(native(installed("cpu")).length).toBeGreaterThan(5)
    const workers = globSync("packages/*/src/**/*.worker.ts", { cwd: root }).map((path) => basename(path, ".ts"))
    expect(workers.length).toBeGreaterThan(0)
    const found = globSync("node_modules/@tessera/*/dist/**/*.worker.js", { cwd: app }).map((path) =>
      basename(path, ".js")
    )
    expect(found.toSorted()).toEqual(workers.toSorted())
  })

  it("resolve every module by its public name", async () => {
    const names = packages.flatMap((name) =>
      globSync("**/*.ts", { cwd: join(root, "packages", name, "src") })
        .filter((path) => !/(^|\/)internal\/|\.worker\.ts$|^main\.ts$/.test(path))
        .map((path) => (path === "index.ts" ? `@tessera/${name}` : `@tessera/${name}/${path.replace(/\.ts$/, "")}`))
    )
    await writeFile(
      join(app, "resolve.js"),
      `for (const name of ${JSON.stringify(names)}) console.log(import.meta.resolve(name), (await import(name), "loads"))`
    )
    const lines = (await run(app, "node", "resolve.js")).trim().split("\n")
    expect(lines.filter((line) => /\/app\/node_modules\/@tessera\/\w+\/dist\/.*\.js loads$/.test(line))).toHaveLength(
      names.length
    )
  }, 60_000)

  it("type-check under a program of thirty lines, which runs on the native backend", async () => {
    await writeFile(join(app, "program.ts"), program)
    const compilerOptions = {
      target: "es2024",
      module: "nodenext",
      strict: true,
      types: ["node"],
      typeRoots: [join(root, "node_modules/@types")]
    }
    await writeFile(join(app, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["program.ts"] }))
    await run(app, join(bin, "tsc"), "-p", ".")
    expect(await run(app, "node", "program.js")).toBe("[2,4,6,8,10,12] 0\n")
  }, 180_000)

  it("augment on threads", async () => {
    await writeFile(join(app, "threads.js"), threads.replace("AT", JSON.stringify({ seed: 1, epoch: 0, index: 0 })))
    expect(await run(app, "node", "threads.js")).toBe("true true\n")
  })

  it("have the command", async () => {
    const tessera = join(app, "node_modules/.bin/tessera")
    expect(await run(app, tessera, "--version")).toContain("0.1.0")
    expect(await run(app, "npx", "tessera", "--help")).toContain("train")
    const models = JSON.parse(await run(app, tessera, "models", "--json")) as unknown
    expect(JSON.stringify(models)).toMatch(/parameters/)
  })

  it("train and evaluate by the command", async () => {
    const small = ["--set", "steps=4", "--set", "model.layers=1", "--set", "batchSize=32"]
    const out = await run(app, "node_modules/.bin/tessera", "train", "mnist", ...small, "--run", "trained", "--json")
    const result = JSON.parse(out.trim().split("\n").at(-1)!) as { kind: string; steps: number }
    expect([result.kind, result.steps]).toEqual(["result", 4])
    const evaluated = JSON.parse(await run(app, "node_modules/.bin/tessera", "evaluate", "trained", "--json")) as {
      count: number
    }
    expect(evaluated.count).toBe(10_000)
  })
})
