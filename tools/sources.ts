/** Source files of the repository and the import statements in them. */
import { existsSync, globSync, readFileSync } from "node:fs"
import { resolve } from "node:path"

export const root = resolve(import.meta.dirname, "..")

const hidden = (path: string) => /(^|\/)(node_modules|dist|runs|\.[^/]+)\//.test(`${path}/`)

/** Paths relative to the root, sorted. */
export const files = (pattern: string): ReadonlyArray<string> =>
  globSync(pattern, { cwd: root, exclude: (path) => hidden(path) }).toSorted()

export const read = (path: string): string => readFileSync(resolve(root, path), "utf8")

export const packages = files("packages/*/package.json")
  .filter((path) => existsSync(resolve(root, path)))
  .map((path) => path.split("/")[1]!)

export interface Import {
  readonly line: number
  readonly from: string
  readonly typeOnly: boolean
}

const statement =
  /^\s*(import|export)\b(?!\s*(?:const|function|class|interface|default)\b)([^"'`;()=]*?)(?:\bfrom\s*)?["']([^"']+)["']/gm
const dynamic = /\bimport\(\s*["']([^"']+)["']\s*\)/g

const blank = (text: string) => text.replaceAll(/[^\n]/g, " ")

/** The same text with comments blanked out; line numbers stay. */
export const withoutComments = (text: string): string =>
  text.replaceAll(
    /("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)|\/\*[\s\S]*?\*\/|\/\/[^\n]*/g,
    (all, literal) => (literal === undefined ? blank(all) : all)
  )

export const lineOf = (text: string, index: number): number => text.slice(0, index).split("\n").length

/** Import and re-export statements and dynamic imports of a module. */
export const imports = (text: string): ReadonlyArray<Import> => {
  const code = withoutComments(text)
  const found: Array<Import> = []
  for (const match of code.matchAll(statement)) {
    const at = match.index + match[0].search(/\S/)
    found.push({ line: lineOf(code, at), from: match[3]!, typeOnly: /^\s+type\b/.test(match[2]!) })
  }
  for (const match of code.matchAll(dynamic)) {
    found.push({ line: lineOf(code, match.index), from: match[1]!, typeOnly: false })
  }
  return found
}
