/** What every pass keeps: the meaning of each program of the corpus, its inputs, outputs and types. */
import { assert, describe, it } from "@effect/vitest"
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import type { AnyTensor, Body } from "@tessera/core/Node"
import * as Program from "@tessera/core/Program"
import type { Example } from "@tessera/core/testing/Programs"
import { models } from "../programs/models.ts"
import { all as programs } from "@tessera/core/testing/Programs"
import * as Counterexample from "./counterexample.ts"

export type Pass = (body: Body) => Body

export interface Claims {
  /** Applying it twice equals once. */
  readonly idempotent: boolean
  /** Largest relative difference of any output; 1e-9 unless given. */
  readonly tolerance?: number
  /** Random programs to try; 200 unless given. */
  readonly runs?: number
}

const print = (x: AnyTensor) => `${x.type.dtype}${Axis.print(x.type.axes)} ${x.role}`

const interfaceProblem = (what: string, before: ReadonlyArray<AnyTensor>, after: ReadonlyArray<AnyTensor>) => {
  if (before.length !== after.length) return `${before.length} ${what}s became ${after.length}`
  const i = before.findIndex(
    (x, k) =>
      !Axis.equal(x.type.axes, after[k]!.type.axes) ||
      x.type.dtype !== after[k]!.type.dtype ||
      x.role !== after[k]!.role
  )
  return i < 0 ? null : `${what} ${i} was ${print(before[i]!)} and is ${print(after[i]!)}`
}

/** What a pass does wrong to one program, or null. */
export const passProblem =
  (pass: Pass, { idempotent, tolerance = 1e-9 }: Claims) =>
  ({ arrays, body }: Example): string | null => {
    const after = pass(body)
    const kept =
      interfaceProblem("input", body.inputs, after.inputs) ?? interfaceProblem("output", body.outputs, after.outputs)
    if (kept !== null) return kept
    const unsound = Program.check(after)
    if (unsound !== null) return unsound
    const [before, now] = [body, after].map((b) => Evaluate.runUnsafe(b, arrays))
    const meaning = Counterexample.difference(before!, now!, tolerance, "output")
    if (meaning !== null) return meaning
    if (idempotent && Program.digest(pass(after)) !== Program.digest(after))
      return "applying it twice is not applying it once"
    return null
  }

const printed = ({ body }: Example) => Program.print(body)

/** A random program that the pass treats wrongly, or null. */
export const counterexample = (pass: Pass, claims: Claims): string | null =>
  Counterexample.find(programs, passProblem(pass, claims), { runs: claims.runs ?? 200 }, printed)

/** Registers the law for one pass: on random programs, with and without gradients, and on tiny real models. */
export const passLaw = (name: string, pass: Pass, claims: Claims): void => {
  describe(name, () => {
    it("keeps random programs", () => assert.isNull(counterexample(pass, claims)))
    for (const model of models) {
      it(`keeps the ${model.name}`, () => assert.isNull(passProblem(pass, claims)(model)))
    }
  })
}
