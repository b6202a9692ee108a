/** The map of types: what a step stores and calculates in, by kind of work, for every mode. */
import * as DTypeMap from "@tessera/core/DTypeMap"
import * as Optimizer from "@tessera/core/Optimizer"
import { adamw } from "@tessera/core/optimizers/adamw"
import * as Precision from "@tessera/core/Precision"
import * as Step from "@tessera/core/Step"
import * as Strategy from "@tessera/core/Strategy"
import type { Subject } from "@tessera/core/testing/Subject"
import * as Result from "effect/Result"
import { describe, expect, it } from "vitest"
import { contrastive, vit } from "../programs/subjects.ts"

const plain = (subject: Subject) =>
  subject.make(Object.fromEntries(Object.entries(subject.sizes).map(([name, values]) => [name, values[0]!])))

const mapOf = (given: string | Precision.Options, subject: Subject = vit(1), microbatches = 2) =>
  DTypeMap.of(
    Result.getOrThrow(
      Step.make({
        ...plain(subject),
        precision: Result.getOrThrow(Precision.make(given)),
        optimizer: Optimizer.make(adamw({ b2: 0.95 })),
        strategy: { ...Strategy.single, microbatches }
      })
    ).program
  )

/** Types without numbers: `parameters: f32 | f32`. */
const types = (rows: ReadonlyArray<DTypeMap.Row>): Readonly<Record<string, string>> =>
  Object.fromEntries(
    rows.map(({ calculated, kind, stored }) => [
      kind,
      [stored, calculated].map((counts) => Object.keys(counts).toSorted().join("+")).join(" | ")
    ])
  )

describe("the map of types", () => {
  it("of bf16 (O2), with numbers", () => {
    expect(DTypeMap.print(mapOf("bf16"))).toMatchInlineSnapshot(`
      "                      stored            calculated
      parameters            f32 24
      parameters in use     bf16 82, f32 38
      optimizer state       f32 48
      optimizer arithmetic                    f32 145
      gradients             f32 80
      gradient sums         f32 24
      gradient reduction    f32 24
      residual stream       bf16 4
      contractions          bf16 50, f32 32   bf16 82
      norms                 bf16 20           f32 20
      softmax               bf16 8            f32 8
      logits                f32 4
      losses                f32 4             f32 4
      reductions            bf16 30, f32 10   f32 40
      elementwise           f32 159, bf16 80  f32 159, bf16 80"
    `)
  })

  it("of every mode", () => {
    const all = Object.fromEntries(
      ["f32", "bf16-O1", "bf16-O2", "bf16-full"].map((mode) => [mode, types(mapOf(mode))] as const)
    )
    const column = (kind: DTypeMap.Kind) => Object.values(all).map((map) => map[kind])
    expect(column("parameters")).toEqual(["f32 | ", "f32 | ", "f32 | ", "bf16 | "])
    expect(column("optimizer state")).toEqual(["f32 | ", "f32 | ", "f32 | ", "bf16 | "])
    expect(column("gradients")).toEqual(["f32 | ", "f32 | ", "f32 | ", "bf16 | "])
    expect(column("gradient sums")).toEqual(["f32 | ", "f32 | ", "f32 | ", "bf16 | "])
    expect(column("gradient reduction")).toEqual(["f32 | ", "f32 | ", "f32 | ", "bf16 | "])
    expect(column("residual stream")).toEqual(["f32 | ", "f32 | ", "bf16 | ", "bf16 | "])
    expect(column("contractions").map((text) => text!.split(" | ")[1])).toEqual(["f32", "bf16", "bf16", "bf16"])
    // f32 whatever the mode.
    for (const kind of ["norms", "softmax", "losses"] as const)
      expect(column(kind).map((text) => text!.split(" | ")[1])).toEqual(["f32", "f32", "f32", "f32"])
    expect(column("norms").map((text) => text!.split(" | ")[0])).toEqual(["f32", "f32", "bf16", "bf16"])
    expect(column("logits")).toEqual(["f32 | ", "f32 | ", "f32 | ", "f32 | "])
  })

  it("shows what was asked for", () => {
    const map = types(mapOf({ mode: "bf16", norms: "bf16", softmax: "bf16", losses: "bf16", gradients: "bf16" }))
    for (const kind of ["norms", "softmax", "losses"] as const) expect(map[kind]).toMatch(/ \| bf16$/)
    expect(map["logits"]).toBe("bf16 | ")
    expect(map["gradient reduction"]).toBe("bf16 | ")
    // Accumulation over microbatches stays f32.
    expect(map["gradient sums"]).toBe("f32 | ")
  })

  it("finds logit scales, forward and backward", () => {
    const scale = (given: string | Precision.Options) => types(mapOf(given, contrastive, 1))["logit scale"]
    expect(types(mapOf("bf16"))["logit scale"]).toBeUndefined()
    expect(scale("bf16")).toBe("f32 | f32")
    expect(scale({ mode: "bf16", logitScale: "bf16" })).toBe("bf16 | bf16")
  })

  it("counts equations as often as they run", () => {
    const number = (rows: ReadonlyArray<DTypeMap.Row>, kind: DTypeMap.Kind) =>
      Object.values(rows.find((row) => row.kind === kind)!.stored).reduce((a, b) => a + b, 0)
    const [once, twice] = [mapOf("bf16", vit(1), 1), mapOf("bf16", vit(1), 2)]
    for (const kind of ["contractions", "norms", "softmax"] as const)
      expect(number(twice, kind)).toBe(2 * number(once, kind))
    // Two norms in each of two layers and one behind them, each forward and backward.
    expect(number(once, "norms")).toBe(2 * (2 * 2 + 1))
    expect(number(once, "softmax")).toBe(2 * 2)
    expect(number(once, "parameters")).toBe(number(twice, "parameters"))
  })
})
