// One way to state a property of a kernel: for every instruction set of this machine, for many seeds.
import { beforeAll, describe, it } from "vitest"
import fc from "fast-check"
import { hostIsas, open, Random, type Library } from "./harness.ts"

/** Compiling takes its time on a busy machine, so it has a time limit of its own. */
export const compileFirst = (isas: ReadonlyArray<string>): void => {
  beforeAll(async () => {
    for (const isa of isas) await open(isa)
  }, 900_000)
}

export const property = (name: string, check: (library: Library, random: Random) => void, runs = 100): void => {
  describe.each(hostIsas)(`${name} on %s`, (isa) => {
    compileFirst([isa])
    it("agrees with plain loops", async () => {
      const library = await open(isa)
      fc.assert(
        fc.property(fc.integer({ min: 0, max: 2 ** 30 }), (seed) => {
          check(library, new Random(seed))
        }),
        { numRuns: runs, endOnFailure: true }
      )
    })
  })
}
