/** Checkpoints from the command line: looked at, checked, cut into parts and put together again. */
import { afterAll, assert, it } from "@effect/vitest"
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { tessera, tiny } from "./tessera.ts"

const folder = mkdtempSync(join(tmpdir(), "tessera-checkpoint-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const only = (path: string): string =>
  join(
    path,
    readdirSync(path).find((n) => n.startsWith("step-"))!
  )

it("is inspected, verified, cut into parts and merged again to the bit", { timeout: 120_000 }, () => {
  const run = join(folder, "run")
  const trained = tessera("train", "mnist", ...tiny, "--set", "steps=6", "--run", run)
  assert.strictEqual(trained.code, 0, trained.err)

  const inspected = tessera("checkpoint", "inspect", run)
  assert.strictEqual(inspected.code, 0, inspected.err)
  for (const part of ["optimizer", "parameter blocks/attention/query", "layers=2, embed=16, heads=2", "f32"])
    assert.include(inspected.out, part)
  const { step, tensors } = JSON.parse(tessera("checkpoint", "inspect", run, "--json").out) as {
    readonly step: number
    readonly tensors: ReadonlyArray<unknown>
  }
  assert.strictEqual(step, 6)

  const parts = join(folder, "parts")
  const cut = tessera("checkpoint", "reshard", run, parts, "--parts", "3")
  assert.strictEqual(cut.code, 0, cut.err)
  assert.isAtLeast(readdirSync(only(parts)).filter((n) => n.includes("part-2")).length, 1)
  assert.include(tessera("checkpoint", "verify", parts).out, `is sound: ${tensors.length} tensors`)

  const merged = join(folder, "merged")
  assert.strictEqual(tessera("checkpoint", "merge", parts, merged).code, 0)
  const original = only(join(run, "checkpoints"))
  for (const name of readdirSync(original).filter((n) => n.endsWith(".safetensors")))
    assert.deepStrictEqual(readFileSync(join(only(merged), name)), readFileSync(join(original, name)), name)

  const file = join(
    only(parts),
    readdirSync(only(parts)).find((n) => n.endsWith(".safetensors"))!
  )
  const bytes = readFileSync(file)
  bytes[bytes.length - 1]! ^= 1
  writeFileSync(file, bytes)
  const broken = tessera("checkpoint", "verify", parts)
  assert.strictEqual(broken.code, 2)
  assert.match(broken.err, /is damaged: its sha256 is/)
})

it("says what is wrong with what was asked", { timeout: 120_000 }, () => {
  const missing = join(folder, "missing")
  for (const [args, message] of [
    [["inspect", missing], /there is no run or checkpoint at/],
    [["verify", folder + "/run"], /is sound/],
    [["reshard", folder + "/run", missing, "--parts", "0"], /--parts 0; 1 or more/],
    [["merge", folder + "/run", folder + "/run"], /is not empty/]
  ] as const) {
    const done = tessera("checkpoint", ...args)
    assert.match(done.err + done.out, message, args.join(" "))
    assert.notMatch(done.err, /\n {4}at /)
  }
})
