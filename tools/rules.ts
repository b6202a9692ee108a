/** House rules that no linter knows: `node tools/rules.ts`. Exit code 1 when one is broken. */
import { realpathSync } from "node:fs"
import { builtinModules } from "node:module"
import { join } from "node:path"
import { files, imports, lineOf, packages, read, root, withoutComments } from "./sources.ts"

interface Finding {
  readonly path: string
  readonly line: number
  readonly text: string
}

/** What a package may import from the other packages of the workspace. A package that is not listed fails. */
const layers: Readonly<Record<string, ReadonlyArray<string>>> = {
  core: [],
  models: ["core"],
  data: ["core"],
  cpu: ["core"],
  cuda: ["core"],
  cli: ["core", "models", "data", "cpu", "cuda"]
}

/** Files outside the command line that may read the clock or the environment, and why. */
const impure: Readonly<Record<string, string>> = {
  "packages/cpu/src/NativeLibrary.ts":
    "XDG_CACHE_HOME decides where compiled kernels lie; a unique name for the build folder"
}

const lineLimit = 500

const nameOf = (specifier: string) =>
  specifier.startsWith("@") ? specifier.split("/").slice(0, 2).join("/") : specifier.split("/")[0]!

const isBuiltin = (specifier: string) => specifier.startsWith("node:") || builtinModules.includes(specifier)

/** The testing kit: nothing else of core needs fast-check, which only those install who test. */
const isTesting = (path: string) => /^packages\/core\/src\/testing(\.ts$|\/)/.test(path)

const importRules = (pkg: string, path: string, text: string): ReadonlyArray<Finding> => {
  const manifest = JSON.parse(read(`packages/${pkg}/package.json`)) as Record<string, Record<string, string>>
  const declared = new Set(
    ["dependencies", "optionalDependencies", "peerDependencies"].flatMap((kind) => Object.keys(manifest[kind] ?? {}))
  )
  const types = new Set(Object.keys(manifest["devDependencies"] ?? {}))
  return imports(text).flatMap(({ from, line, typeOnly }) => {
    const finding = (message: string): ReadonlyArray<Finding> => [{ path, line, text: message }]
    if (/^\.+\/(.*\/)?testing[./]/.test(from) && !isTesting(path)) return finding(`"${from}" needs fast-check`)
    if (from.startsWith(".")) {
      return from.endsWith(".ts") || from.endsWith(".json") ? [] : finding(`"${from}": a relative import ends with .ts`)
    }
    if (isBuiltin(from)) return from.startsWith("node:") ? [] : finding(`"${from}": write "node:${from}"`)
    const name = nameOf(from)
    const other = /^@tessera\/(.+)$/.exec(name)?.[1]
    if (other === pkg) return finding(`"${from}": a package imports its own modules by relative path`)
    if (other !== undefined && !layers[pkg]?.includes(other)) return finding(`@tessera/${pkg} may not import ${name}`)
    if (other !== undefined && from.split("/").includes("internal")) return finding(`"${from}" is internal to ${name}`)
    if (pkg === "core" && name === "fast-check" && isTesting(path)) return []
    if (pkg === "core" && name !== "effect") return finding(`core imports only effect, not "${from}"`)
    const known = declared.has(name) || (typeOnly && (types.has(name) || types.has(`@types/${name}`)))
    return known ? [] : finding(`"${name}" is not among the dependencies of packages/${pkg}/package.json`)
  })
}

const patternRules = (pkg: string, path: string, text: string): ReadonlyArray<Finding> => {
  const code = withoutComments(text)
  const all = (pattern: RegExp, message: (found: string) => string) =>
    Array.from(code.matchAll(pattern), (m) => ({ path, line: lineOf(code, m.index), text: message(m[0]) }))
  const impurity =
    pkg === "cli" || path in impure
      ? []
      : all(
          /\bDate\.now\b|\bprocess\.env\b|\bnew Date\(\)|\bMath\.random\b/g,
          (found) => `${found} outside the command line`
        )
  return [...impurity, ...all(/^export default\b/gm, () => "no default exports")]
}

const errors: Array<Finding> = []
const warnings: Array<Finding> = []
let checked = 0

for (const pkg of packages) {
  if (layers[pkg] === undefined) {
    errors.push({ path: `packages/${pkg}`, line: 1, text: "no layer in tools/rules.ts: say what it may import" })
  }
  for (const path of files(`packages/${pkg}/src/**/*.ts`)) {
    const text = read(path)
    checked++
    errors.push(...importRules(pkg, path, text), ...patternRules(pkg, path, text))
    const lines = text.split("\n").length - 1
    if (lines > lineLimit && !path.includes("/internal/")) {
      warnings.push({ path, line: 1, text: `${lines} lines; split files over ${lineLimit}` })
    }
  }
}
for (const path of files("{test/src,examples,bench,tools}/**/*.ts")) {
  const text = read(path)
  checked++
  errors.push(...patternRules("cli", path, text))
  if (path.startsWith("examples/") || path.startsWith("bench/")) {
    const inside = imports(text).filter(({ from }) => /packages\/|^@tessera\/.*\/internal\//.test(from))
    errors.push(...inside.map(({ from, line }) => ({ path, line, text: `"${from}": import the public modules` })))
  }
}
for (const path of Object.keys(impure)) {
  if (files(path).length === 0)
    errors.push({ path: "tools/rules.ts", line: 1, text: `${path} does not exist any more` })
}

// With two copies, the tests of one are unknown to the other: "failed to find the current suite".
const copies = ["node_modules/vitest", "test/node_modules/vitest"].map((path) => realpathSync(join(root, path)))
if (copies[0] !== copies[1]) {
  errors.push({ path: "pnpm-lock.yaml", line: 1, text: `two copies of vitest: ${copies.join(" and ")}` })
}

const print = (kind: string) => (f: Finding) => console.log(`${f.path}:${f.line}: ${kind}: ${f.text}`)
warnings.forEach(print("warning"))
errors.forEach(print("error"))
console.log(`${checked} files, ${errors.length} errors, ${warnings.length} warnings`)
if (errors.length > 0 || checked === 0) process.exitCode = 1
