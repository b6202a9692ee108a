/** Code blocks of the documentation: finding, type-checking and running them. */
import { spawnSync } from "node:child_process"
import { existsSync, globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join, relative, resolve } from "node:path"

export const root = resolve(import.meta.dirname, "../../..")
export const node = join(root, "node_modules/.bin/node")

export interface Block {
  readonly document: string
  /** Line of the document on which the block's first line stands. */
  readonly line: number
  readonly language: string
  readonly code: string
}

export const blocks = (document: string, text: string): ReadonlyArray<Block> => {
  const found: Array<Block> = []
  let open: { readonly fence: string; readonly language: string; readonly line: number } | null = null
  let code: Array<string> = []
  text.split("\n").forEach((content, index) => {
    const fence = /^ {0,3}(`{3,}|~{3,})\s*([^\s`{]*)/.exec(content)
    if (open === null) {
      if (fence === null) return
      open = { fence: fence[1]!, language: fence[2]!, line: index + 2 }
      code = []
    } else if (fence !== null && fence[2] === "" && fence[1]!.startsWith(open.fence)) {
      found.push({ document, line: open.line, language: open.language, code: `${code.join("\n")}\n` })
      open = null
    } else {
      code.push(content)
    }
  })
  return found
}

export const documents: ReadonlyArray<string> = globSync(["README.md", "docs/**/*.md"], { cwd: root }).toSorted()
export const examples: ReadonlyArray<string> = globSync("examples/*.ts", { cwd: root }).toSorted()
export const documentBlocks: ReadonlyArray<Block> = documents.flatMap((path) =>
  blocks(path, readFileSync(join(root, path), "utf8"))
)

/** Spellings of ts and sh that the checks would pass over. */
export const misspelt = (all: ReadonlyArray<Block>): ReadonlyArray<string> =>
  all
    .filter(
      ({ language }) =>
        /^(typescript|tsx|mts|js|javascript|mjs|bash|shell|zsh)$/i.test(language) || /^(TS|Ts|SH|Sh)$/.test(language)
    )
    .map(({ document, language, line }) => `${document}:${line - 1}: write ts or sh instead of ${language}`)

// Inside the checkout, so that packages resolve; not below node_modules, where Node does not strip types. Git ignores .cache.
const workspace = (): string => {
  mkdirSync(join(root, ".cache"), { recursive: true })
  return mkdtempSync(join(root, ".cache/snippets-"))
}

/** The file that a block is for the other blocks of its document: those that begin with a comment such as `// model.ts`. */
export const fileOf = ({ code }: Block): string | null => /^\/\/ (\w+\.ts)\n/.exec(code)?.[1] ?? null

/** One module per block, in a folder for each document. Blank lines before it make the compiler count as the document does. */
const write = (folder: string, all: ReadonlyArray<Block>): ReadonlyMap<string, Block> =>
  new Map(
    all.map((block, index) => {
      const own = join(folder, block.document.replaceAll(/[^A-Za-z0-9]+/g, "-"))
      mkdirSync(own, { recursive: true })
      const file = join(own, fileOf(block) ?? `block-${index}.ts`)
      writeFileSync(file, "\n".repeat(block.line - 1) + block.code)
      return [file, block]
    })
  )

const execute = (program: string, args: ReadonlyArray<string>, limit: number) => {
  const result = spawnSync(program, args, {
    cwd: root,
    encoding: "utf8",
    timeout: limit,
    maxBuffer: 64 << 20,
    env: { ...process.env, NO_COLOR: "1" }
  })
  const ended = result.signal === null ? `exit code ${result.status}` : `ended by ${result.signal}`
  return {
    ok: result.status === 0,
    stdout: result.stdout,
    output: `${result.stdout}${result.stderr}`,
    ended: result.error === undefined ? ended : `${ended}, ${result.error.message}`
  }
}

/** Compiler errors in blocks and files, at their place in the document. Errors elsewhere are for `tsc -b` to report. */
export const typeErrors = (all: ReadonlyArray<Block>, sources: ReadonlyArray<string>): ReadonlyArray<string> => {
  if (all.length + sources.length === 0) return []
  const folder = workspace()
  try {
    const modules = write(folder, all)
    const options = {
      extends: "../../tsconfig.base.json",
      compilerOptions: {
        noEmit: true,
        composite: false,
        declaration: false,
        declarationMap: false,
        rewriteRelativeImportExtensions: false,
        noUnusedLocals: false,
        moduleDetection: "force"
      },
      files: [...modules.keys(), ...sources.map((path) => join(root, path))]
    }
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(options))
    const { ended, ok, output } = execute(
      join(root, "node_modules/.bin/tsc"),
      ["-p", join(folder, "tsconfig.json"), "--pretty", "false"],
      120_000
    )
    if (ok) return []
    const located = Array.from(
      output.matchAll(/^(\S.*?)\((\d+),(\d+)\): (error TS.*)$/gm),
      ([, path, line, column, text]) => {
        const file = resolve(root, path!)
        return {
          own: modules.has(file) || sources.includes(relative(root, file)),
          text: `${modules.get(file)?.document ?? path}:${line}:${column}: ${text}`
        }
      }
    )
    if (located.length === 0) return [`the compiler failed (${ended}): ${output}`]
    return located.filter(({ own }) => own).map(({ text }) => text)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

const firstLine = (block: Block): string => block.code.split("\n", 1)[0]!.trim()

export const isRun = (block: Block): boolean => firstLine(block) === "// run" || prints(block)

/** The block after it shows what this one prints. */
const prints = (block: Block): boolean => firstLine(block) === "// run, prints:"

/** Null, or what went wrong. `all` are the blocks of the document. */
export const runBlock = (block: Block, all: ReadonlyArray<Block> = [block]): string | null => {
  const folder = workspace()
  const document = all.filter((other) => other.document === block.document)
  const at = `${block.document}:${block.line}`
  try {
    const files = write(folder, [block, ...document.filter((other) => fileOf(other) !== null)])
    const [file] = files.keys()
    const { ended, ok, output, stdout } = execute(node, [file!], 120_000)
    if (!ok) return `${at}: ${ended}\n${output}`
    if (!prints(block)) return null
    const shown = document[document.findIndex((other) => other.line === block.line) + 1]
    return shown?.code === stdout ? null : `${at} prints something else than the block after it shows:\n${stdout}`
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** An example ends well and prints something. */
export const runExample = (path: string): string | null => {
  const { ended, ok, output, stdout } = execute(node, [path], 120_000)
  if (!ok) return `${path}: ${ended}\n${output}`
  return stdout.trim() === "" ? `${path} prints nothing` : null
}

export interface Command {
  readonly document: string
  readonly line: number
  readonly words: ReadonlyArray<string>
}

/** Commands of sh blocks that call tessera or pnpm; lines or whole blocks marked "# not run" are left out. */
export const commands = (all: ReadonlyArray<Block>): ReadonlyArray<Command> =>
  all
    .filter(({ code, language }) => language === "sh" && !/^\s*# not run/.test(code))
    .flatMap(({ code, document, line }) => {
      const lines = code.replaceAll("\\\n", " \u0000").split("\n")
      let at = line
      return lines.flatMap((text) => {
        const here = at
        at += 1 + text.split("\u0000").length - 1
        const plain = text.replaceAll("\u0000", "").replace(/^\$ /, "").trim()
        if (plain.includes("# not run")) return []
        return plain
          .replace(/\s#.*$/, "")
          .split(/\s*(?:&&|\|\||[|;])\s*/)
          .map((part) => (part.match(/"[^"]*"|'[^']*'|\S+/g) ?? []).filter((word, i) => i > 0 || word !== ""))
          .map((words) => {
            const first = words.findIndex((word) => !/^[A-Z_]+=/.test(word))
            const rest = words.slice(Math.max(0, first))
            return rest[0] === "npx" ? rest.slice(1).filter((word) => word !== "--yes" && word !== "-y") : rest
          })
          .filter(([program]) => program === "tessera" || program === "pnpm" || program?.startsWith("pnpm@") === true)
          .map((words) => ({ document, line: here, words }))
      })
    })

const helpTexts = new Map<string, { readonly ok: boolean; readonly text: string }>()
const help = (...command: ReadonlyArray<string>) => {
  const key = command.join(" ")
  let found = helpTexts.get(key)
  if (found === undefined) {
    const { ok, output } = execute(node, [join(root, "packages/cli/bin/tessera.mjs"), ...command, "--help"], 60_000)
    found = { ok, text: output }
    helpTexts.set(key, found)
  }
  return found
}

/** A pattern for the text itself. */
const literal = (text: string) => text.replaceAll(/[^\w\s]/g, "\\$&")

const pnpmCommands = new Set([
  "install",
  "add",
  "remove",
  "update",
  "pack",
  "exec",
  "run",
  "dlx",
  "store",
  "why",
  "list",
  "-r"
])

const tesseraProblem = (args: ReadonlyArray<string>): string | null => {
  // What follows -- is the command of every rank.
  const inner = args.indexOf("--")
  if (inner >= 0) return tesseraProblem(args.slice(0, inner)) ?? tesseraProblem(args.slice(inner + 1))
  const name = args[0] === undefined || args[0].startsWith("-") ? null : args[0]
  const global = help()
  if (!global.ok) return `"tessera --help" fails: ${global.text}`
  if (name !== null && !new RegExp(`^\\s+${literal(name)}\\b`, "m").test(global.text))
    return `tessera has no command "${name}"`
  const above = name === null ? global : help(name)
  const [, sub = "-"] = args
  const nested = name !== null && !sub.startsWith("-") && new RegExp(`^\\s+${literal(sub)}\\s{2}`, "m").test(above.text)
  const own = nested ? help(name, sub) : above
  if (!own.ok) return `"tessera ${name} --help" fails: ${own.text}`
  for (const word of args) {
    const flag = /^(--?[A-Za-z][\w-]*)/.exec(word)?.[1]
    if (flag === undefined) continue
    const spellings = [flag, flag.replace(/^--no-/, "--")]
    const known = spellings.some((s) =>
      new RegExp(`(^|[\\s,\\[(|])${literal(s)}(?![\\w-])`, "m").test(own.text + global.text)
    )
    if (!known) return `"tessera ${name ?? ""}" has no flag ${flag}`
  }
  return null
}

/** Null, or what is wrong with a documented command. */
export const commandProblem = ({ document, line, words }: Command): string | null => {
  const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    readonly scripts: Readonly<Record<string, string>>
  }
  const problem = (): string | null => {
    const [program, ...args] = words
    if (program === "tessera") return tesseraProblem(args)
    const rest = args[0] === "run" || args[0] === "exec" ? args.slice(1) : args
    const [name, ...given] = rest
    if (name === undefined) return null
    if (name === "tessera") return tesseraProblem(given)
    const script = scripts[name]
    if (script !== undefined) {
      const [command, ...own] = script.split(" ")
      if (command === "tessera") return tesseraProblem([...own, ...given.filter((word) => word !== "--")])
      const file = command === "node" ? own[0]! : null
      return file === null || existsSync(join(root, file)) ? null : `"pnpm ${name}" runs ${file}, which does not exist`
    }
    if (args[0] !== "run" && pnpmCommands.has(name)) return null
    return existsSync(join(root, "node_modules/.bin", name)) ? null : `no script or command "${name}" in package.json`
  }
  const found = problem()
  return found === null ? null : `${document}:${line}: ${words.join(" ")}: ${found}`
}
