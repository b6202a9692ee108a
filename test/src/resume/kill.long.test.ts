import { assert, it } from "@effect/vitest"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { final, finish, kill } from "./runs.ts"

it("30 kills at random moments, at least 10 of them inside of a checkpoint write", { timeout: 1_800_000 }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "tessera-kill-long-"))
  try {
    const whole = join(folder, "whole")
    finish(whole, false)
    const expected = final(whole)
    let [kills, inWrites, round] = [0, 0, 0]
    while (kills < 30 || inWrites < 10) {
      const run = join(folder, `run-${round++}`)
      for (let n = 0; n < 5; n++) {
        const atWrite = Math.random() < 0.5
        const steps = Math.floor(Math.random() * 6)
        const moment = atWrite
          ? ({ kind: "write" } as const)
          : ({ kind: "step", steps, millis: Math.random() * 60 } as const)
        const { inWrite, over } = await kill(run, n > 0, moment)
        if (over) break
        kills += 1
        if (inWrite) inWrites += 1
      }
      finish(run, true)
      assert.deepStrictEqual(final(run), expected)
      rmSync(run, { recursive: true, force: true })
    }
    assert.isAtLeast(inWrites, 10)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
