import { assert, it } from "@effect/vitest"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { final, finish, kill, losses, stepCount } from "./runs.ts"

it(
  "a run killed four times, twice inside of a checkpoint write, ends as the run that was never killed",
  { timeout: 180_000 },
  async () => {
    const folder = mkdtempSync(join(tmpdir(), "tessera-kill-"))
    try {
      const [whole, killed] = [join(folder, "whole"), join(folder, "killed")]
      finish(whole, false)
      await kill(killed, false, { kind: "step", steps: 3, millis: 5 })
      await kill(killed, true, { kind: "write" })
      await kill(killed, true, { kind: "step", steps: 2, millis: 17 })
      await kill(killed, true, { kind: "write" })
      finish(killed, true)
      assert.deepStrictEqual(final(killed), final(whole))
      assert.strictEqual(losses(killed).length, stepCount)
      assert.deepStrictEqual(losses(killed), losses(whole))
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  }
)
