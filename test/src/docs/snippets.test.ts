/** What the documentation shows is true: blocks type-check, marked ones and all examples run, commands exist. */
import { describe, expect, it } from "vitest"
import {
  blocks,
  commandProblem,
  commands,
  documentBlocks,
  documents,
  examples,
  isRun,
  misspelt,
  runBlock,
  runExample,
  typeErrors
} from "./snippets.ts"

const ts = documentBlocks.filter(({ language }) => language === "ts")
const shown = commands(documentBlocks)

describe("the documentation", () => {
  it(`${documents.length} documents call their blocks ts and sh, and have some`, () => {
    expect(misspelt(documentBlocks)).toEqual([])
    if (documents.includes("README.md")) expect(shown.length).toBeGreaterThan(0)
    if (documents.some((path) => path.startsWith("docs/"))) expect(ts.length).toBeGreaterThan(0)
  })
  it(`${ts.length} ts blocks and ${examples.length} examples type-check`, { timeout: 150_000 }, () => {
    expect(typeErrors(ts, examples)).toEqual([])
  })
  it(`${shown.length} commands exist with their flags`, { timeout: 150_000 }, () => {
    expect(shown.map(commandProblem).filter((problem) => problem !== null)).toEqual([])
  })
  for (const block of ts.filter(isRun)) {
    it(`${block.document}:${block.line} runs`, { timeout: 150_000 }, () =>
      expect(runBlock(block, documentBlocks)).toBeNull()
    )
  }
  for (const path of examples) {
    it(`${path} runs and prints`, { timeout: 150_000 }, () => expect(runExample(path)).toBeNull())
  }
})

describe("the checks of the documentation", () => {
  const page = [
    "# Title", // 1
    "```ts",
    "// run",
    'import { Axis } from "@tessera/core"',
    'if (Axis.list({ batch: 2 })[0]!.size !== 2) throw new Error("wrong")',
    "```",
    "  ```ts title", // 7
    "const wrong: number = 'text'",
    "  ```",
    "````text", // 10
    "```ts",
    "not code",
    "```",
    "````",
    "```sh", // 15
    "npx --yes pnpm@12 install && npx --yes pnpm@12 nonsense",
    "pnpm \\",
    "  rubbish",
    "pnpm typecheck # fine",
    "pnpm missing # not run",
    "cd elsewhere",
    "```",
    "```typescript", // 23
    "```"
  ].join("\n")
  const found = blocks("page.md", page)

  it("find blocks, their languages and lines", () => {
    expect(found.map(({ language, line }) => [language, line])).toEqual([
      ["ts", 3],
      ["ts", 8],
      ["text", 11],
      ["sh", 16],
      ["typescript", 24]
    ])
    expect(misspelt(found)).toEqual(["page.md:23: write ts or sh instead of typescript"])
    expect(found.map(isRun)).toEqual([true, false, false, false, false])
  })
  it("report a type error at its line in the document", { timeout: 150_000 }, () => {
    expect(
      typeErrors(
        found.filter(({ language }) => language === "ts"),
        []
      )
    ).toEqual(["page.md:8:7: error TS2322: Type 'string' is not assignable to type 'number'."])
  })
  it("run a block, and report one that fails", { timeout: 150_000 }, () => {
    expect(runBlock(found[0]!)).toBeNull()
    expect(runBlock({ ...found[0]!, code: 'throw new Error("on purpose")\n' })).toContain("on purpose")
  })
  it("run a block with the files of its document, and compare what it prints", { timeout: 150_000 }, () => {
    const text = [
      "```ts",
      "// number.ts",
      "export const number = 7",
      "```",
      "```ts",
      "// run, prints:",
      'import { number } from "./number.ts"',
      "console.log(number)",
      "```",
      "```text",
      "7",
      "```"
    ].join("\n")
    const [right, wrong] = [text, text.replace("\n7\n", "\n8\n")].map((content) => blocks("page.md", content))
    expect(right!.map(isRun)).toEqual([false, true, false])
    expect(runBlock(right![1]!, right)).toBeNull()
    expect(runBlock(wrong![1]!, wrong)).toContain("page.md:6 prints something else than the block after it shows:\n7\n")
  })
  it("find commands that do not exist", () => {
    const all = commands(found)
    expect(all.map(({ line, words }) => [line, words.slice(1)])).toEqual([
      [16, ["install"]],
      [16, ["nonsense"]],
      [17, ["rubbish"]],
      [19, ["typecheck"]]
    ])
    expect(all.map(commandProblem).filter((problem) => problem !== null)).toEqual([
      'page.md:16: pnpm@12 nonsense: no script or command "nonsense" in package.json',
      'page.md:17: pnpm rubbish: no script or command "rubbish" in package.json'
    ])
  })
})
