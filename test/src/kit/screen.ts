/** What a counterexample of the kit has to be: small enough for a screen, and clear about where. */
import type { LawBroken } from "@tessera/core/testing"
import { expect } from "vitest"

export const expectSmall = (found: LawBroken | null, ...parts: ReadonlyArray<string>): void => {
  expect(found).not.toBe(null)
  const { message } = found!
  const lines = message.split("\n")
  expect(lines.length, message).toBeLessThanOrEqual(30)
  expect(Math.max(...lines.map((line) => line.length)), message).toBeLessThanOrEqual(150)
  for (const part of ["first different equation: ", ...parts]) expect(message).toContain(part)
}
