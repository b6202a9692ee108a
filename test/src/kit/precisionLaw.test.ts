import * as Axis from "@tessera/core/Axis"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import type { AnyTensor, Tensor } from "@tessera/core/Node"
import * as Precision from "@tessera/core/Precision"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import type { Subject } from "@tessera/core/testing"
import { experiment, precisionCounterexample, precisionWithin, subject } from "@tessera/core/testing"
import { describe, expect, it } from "vitest"
import { layered, tagger, towers } from "./models.ts"
import { expectSmall } from "./screen.ts"

/** Many positive numbers add up, a norm sees small differences of large values, and so does the loss. */
const offsets: Subject = subject({
  name: "offsets",
  sizes: { batch: [2, 8], embed: [2, 4], pixel: [4, 512] },
  make: ({ batch, embed, pixel }) => {
    const examples = Axis.list({ batch })
    return experiment({
      params: {
        stem: Module.param({ pixel, embed }, Init.constantOf(0.5)),
        offset: Module.param({ embed }, Init.constantOf(60)),
        head: Module.param({ embed, class: 3 }, Init.fanIn("embed")),
        bias: Module.param({ class: 3 }, Init.constantOf(50))
      },
      batch: {
        examples: { axes: examples, dtype: "u32" as const },
        image: { axes: Axis.list({ batch, pixel }), dtype: "f32" as const },
        label: { axes: examples, dtype: "i32" as const }
      },
      limits: { label: 3 },
      ranges: { image: [0, 1] },
      loss: (p, b) => {
        const x = T.add(T.contract(b.image as Tensor<"batch" | "pixel">, p.stem, "pixel"), p.offset)
        const logits = T.add(T.contract(T.layerNorm(x, "embed", 1e-3), p.head, "embed"), p.bias)
        const each = T.softmaxCrossEntropy(logits, b.label as Tensor<"batch", "int">, { classes: "class" })
        return { total: T.sum(each, "batch"), weight: T.constant(batch) }
      }
    })
  }
})

describe("every precision is as near to f32 as its types allow", () => {
  it.each([layered(0.25), towers, tagger, offsets])("$name", (given) => precisionWithin(given))
})

type Apply = typeof Precision.apply

const half = ({ matmul }: Precision.Precision) => matmul

/** Says that losses are f32, and calculates them in 16 bits. */
const narrowLoss: Apply = (program, mode) => Precision.apply(program, { ...mode, losses: half(mode), logits: null })

/** The same with norms. */
const narrowNorm: Apply = (program, mode) => Precision.apply(program, { ...mode, norms: half(mode) })

/** Contractions add up in 16 bits, one product after another. */
const narrowSum: Apply = (program, mode) => {
  const after = Precision.apply(program, mode)
  const type = half(mode)
  const body = Program.map(after, (e, [x, y]) => {
    if (e.primitive.name !== "contract" || e.params.over.join() !== "pixel") return null
    const [o] = e.outputs
    const zero = T.broadcast(T.constant(0, type), o!.type.axes)
    const { carried } = T.scan("pixel", { carried: [zero], each: [x!, y!], fixed: [] }, (inside) => {
      const [a, b] = inside.each.map((z) => T.cast(z as Tensor<string>, type)) as [Tensor<string>, Tensor<string>]
      return { carried: [T.add(inside.carried[0] as Tensor<string>, T.mul(a, b))], stacked: [], summed: [] }
    })
    return [T.cast(carried[0] as Tensor<string>, o!.type.dtype)] as ReadonlyArray<AnyTensor>
  })
  return Program.withBody(after, body)
}

/** Says that nothing but operands of contractions is narrow, and rounds all activations. */
const narrowActivations: Apply = (program, mode) => Precision.apply(program, { ...mode, pointwise: half(mode) })

describe("the law catches", () => {
  const find = (implementation: Apply) =>
    precisionCounterexample(offsets, {
      implementation,
      modes: [Precision.bf16O1, Precision.f16O1],
      runs: 40,
      seed: 4
    })
  it("a loss in 16 bits", () =>
    expectSmall(find(narrowLoss), "batch=2, embed=2, pixel=4\n", "bf16-O1\n", "crossEntropy"))
  it("a norm in 16 bits", () => expectSmall(find(narrowNorm), "batch=2, embed=2, pixel=4\n", "bf16-O1\n", "= norm("))
  it("sums in 16 bits", () => expectSmall(find(narrowSum), "batch=2, embed=2, pixel=512\n", "bf16-O1\n", "= contract("))
  it("activations in 16 bits, where they should be f32", () =>
    expectSmall(find(narrowActivations), "batch=2, embed=2, pixel=4\n", "bf16-O1\n", "= add("))
})

it("a policy that asks for 16 bits gets what they do", () => {
  const precision = { ...Precision.bf16O1, norms: "bf16", losses: "bf16", name: "bf16-O1, all narrow" } as const
  precisionWithin(offsets, { modes: [precision] })
  expect(precisionCounterexample(offsets, { modes: [Precision.bf16O1], runs: 5 })).toBe(null)
})
