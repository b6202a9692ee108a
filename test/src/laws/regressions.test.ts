/** The smallest programs that once failed. */
import { assert, describe, it } from "@effect/vitest"
import * as Axis from "@tessera/core/Axis"
import { ProgramError } from "@tessera/core/Errors"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Gradient from "@tessera/core/Gradient"
import * as Host from "@tessera/core/HostArray"
import type { AnyPrimitive, AnyTensor, Tensor } from "@tessera/core/Node"
import { build, input } from "@tessera/core/Node"
import { all } from "@tessera/core/primitives/all"
import { composite } from "@tessera/core/primitives/composite"
import * as Program from "@tessera/core/Program"
import * as Random from "@tessera/core/Random"
import * as T from "@tessera/core/Tensor"

type F = Tensor<string>
type I = Tensor<never, "int">

const f32 = (sizes: Readonly<Record<string, number>>) => ({ axes: Axis.list(sizes), dtype: "f32" as const })
const refused = (make: () => unknown): string => {
  try {
    make()
  } catch (error) {
    if (error instanceof ProgramError) return error.message
    throw error
  }
  return "accepted"
}
const gradients = (inputs: ReadonlyArray<AnyTensor>, loss: AnyTensor, arrays: ReadonlyArray<Host.HostArray>) =>
  Evaluate.runUnsafe(Gradient.valueAndGrad(Program.body(inputs, [loss]), [0]), arrays)[1]!

describe("derivatives", () => {
  it("softmax has one", () => {
    const x = input(f32({ classes: 3 })) as Tensor<"classes">
    const first = T.sum(T.slice(T.softmax(x, "classes"), "classes", { to: "one", start: 0, size: 1 }), "one")
    const gradient = gradients([x], first, [Host.make(x.type.axes, "f32", [0, 0, 0])])
    assert.isBelow(Host.distance(gradient, Host.make(x.type.axes, "f32", [2 / 9, -1 / 9, -1 / 9])), 1e-15)
  })

  it("a contraction over an axis of one operand gives that operand's axes back", () => {
    const [x, y] = [input(f32({ batch: 2, seq: 3 })), input(f32({ batch: 2 }))]
    const loss = build(all.contract, [x, y], { over: ["batch", "seq"], dtype: "f32" }, "compute")[0]!
    const arrays = [Host.make(x.type.axes, "f32", [1, 2, 3, 4, 5, 6]), Host.make(y.type.axes, "f32", [10, 20])]
    const gradient = gradients([x, y], loss, arrays)
    assert.strictEqual(Host.distance(gradient, Host.make(x.type.axes, "f32", [10, 10, 10, 20, 20, 20])), 0)
  })

  it("a composite that hands its input on counts cotangents once", () => {
    const both: AnyPrimitive = composite("both", ([a]) => [a!, a!], { precision: "pointwise" })
    const x = input(f32({}))
    const [left, right] = build(both, [x], {}, "compute")
    const gradient = gradients([x], T.add(left as F, T.scale(right as F, 10)), [Host.scalar(1)])
    assert.strictEqual(gradient.data[0], 11)
  })

  it("merging with an empty axis", () => {
    const x = input(f32({ outer: 2, inner: 0 })) as Tensor<"outer" | "inner">
    const loss = T.sum(T.merge(x, "outer", "inner", "merged"), "merged")
    const gradient = gradients([x], loss, [Host.make(x.type.axes, "f32", [])])
    assert.isTrue(Axis.equal(gradient.axes, x.type.axes))
  })

  it("integers owe nothing: what made them needs no derivative", () => {
    const [x, ids] = [input(f32({})), input({ axes: Axis.list({ seq: 3 }), dtype: "i32" })]
    const largest = T.max(ids as Tensor<"seq", "int">, "seq")
    const result = T.scan(
      "layers",
      { carried: [x, largest], each: [], fixed: [] },
      ({ carried: [value, count] }) => ({
        carried: [T.scale(value as F, 2), T.shift(count as I, 1)],
        stacked: [],
        summed: []
      }),
      3
    )
    const gradient = gradients([x, ids], result.carried[0]!, [
      Host.scalar(1),
      Host.make(ids.type.axes, "i32", [1, 5, 2])
    ])
    assert.strictEqual(gradient.data[0], 8)
  })

  it("the concatenation of parts of which one has another's own axis", () => {
    const [x, y] = [input(f32({ left: 1, right: 2 })), input(f32({ right: 2 }))]
    const joined = T.concat(
      [
        [x as F, "left"],
        [y as F, "right"]
      ],
      "joined"
    )
    const loss = T.sum(joined as Tensor<"joined" | "right">, "joined", "right")
    const gradient = Evaluate.runUnsafe(Gradient.valueAndGrad(Program.body([x, y], [loss]), [1]), [
      Host.make(x.type.axes, "f32", [1, 2]),
      Host.make(y.type.axes, "f32", [3, 4])
    ])[1]!
    assert.deepStrictEqual(Array.from(gradient.data), [2, 2])
  })
})

describe("refused", () => {
  const [whole, part, start] = [
    input(f32({ batch: 3, seq: 5 })),
    input(f32({ batch: 2, part: 2 })),
    input({ axes: [], dtype: "i32" })
  ] as const
  const update = (x: AnyTensor, y: AnyTensor) => () =>
    build(all.updateSlice, [x, y, start], { axis: "seq", part: "part" }, "compute")

  it("updateSlice with another size, or another axis", () => {
    assert.match(refused(update(whole, part)), /"batch".*3.*2/)
    assert.match(refused(update(whole, input(f32({ batch: 3, heads: 2, part: 2 })))), /heads/)
  })

  it("lookup and scatterAdd with coordinates of another size", () => {
    const [table, coordinates, ids] = [
      input(f32({ vocab: 5, embed: 2 })),
      input({ axes: Axis.list({ vocab: 4 }), dtype: "i32" }),
      input({ axes: Axis.list({ seq: 3 }), dtype: "i32" })
    ]
    assert.match(
      refused(() => build(all.lookup, [table, coordinates, ids], { over: "vocab" }, "compute")),
      /"vocab".*5.*4/
    )
  })

  it("scatterAdd of ids along an axis that the rows lack or store in another size", () => {
    const coordinates = input({ axes: Axis.list({ vocab: 4 }), dtype: "i32" })
    const scatter = (rows: Record<string, number>, ids: Record<string, number>, reduced: ReadonlyArray<string>) =>
      refused(() =>
        build(
          all.scatterAdd,
          [input(f32(rows)), coordinates, input({ axes: Axis.list(ids), dtype: "i32" })],
          { over: "vocab", reduced },
          "compute"
        )
      )
    assert.match(scatter({ seq: 2 }, { seq: 3 }, ["seq"]), /"seq".*2.*3/)
    assert.match(scatter({ embed: 2 }, { seq: 3 }, []), /"seq"/)
    assert.match(scatter({ seq: 3 }, { seq: 3 }, ["embed"]), /"embed"/)
    assert.match(scatter({ seq: 3, vocab: 4 }, { seq: 3 }, ["seq"]), /"vocab"/)
    assert.strictEqual(scatter({ seq: 3, embed: 2 }, { seq: 3 }, ["seq"]), "accepted")
  })

  it("regions on operands that their bodies do not take", () => {
    const inside = input(f32({ seq: 3 }))
    const body = Program.body([inside], [T.tanh(inside as F)])
    for (const primitive of [all.recompute, all.fused]) {
      const use = (x: AnyTensor) => refused(() => build(primitive, [x], { body, pattern: "pointwise" }, "compute"))
      assert.match(use(input(f32({ seq: 4 }))), /seq=4.*seq=3/)
      assert.strictEqual(use(input(f32({ seq: 3 }))), "accepted")
    }
  })

  it("parts with one name, no parts at all", () => {
    const x = input(f32({ seq: 4, batch: 2 })) as Tensor<"seq" | "batch">
    assert.match(
      refused(() => T.split(x, "seq", { outer: "part", inner: "part", size: 2 })),
      /part/
    )
    assert.match(
      refused(() => T.merge(x, "seq", "seq", "joined")),
      /seq/
    )
    assert.match(
      refused(() => T.concat([], "seq")),
      /concat/
    )
  })

  it("attention whose keys have an axis that queries lack", () => {
    const q = input(f32({ seq: 2, headDim: 3 })) as Tensor<"seq" | "headDim">
    const k = input(f32({ keySeq: 2, headDim: 3, heads: 2 })) as Tensor<"keySeq" | "headDim" | "heads">
    assert.match(
      refused(() => T.attention(q, k, k, { query: "seq", key: "keySeq", depth: "headDim" })),
      /heads/
    )
  })
})

describe("memory order is no meaning", () => {
  it("of the axes that random bits are drawn for", () => {
    const seed = input({ axes: [], dtype: "u32" })
    const draw = (axes: Axis.Axes) =>
      Evaluate.runUnsafe(Program.body([seed], [Random.bits(Random.make(seed as I), axes)]), [Host.scalar(3, "u32")])[0]!
    const axes = Axis.list({ seq: 2, embed: 3 })
    assert.strictEqual(Host.distance(draw(axes), draw(axes.toReversed())), 0)
  })
})

describe("programs that differ", () => {
  it("in the sign of an infinity have different digests", () => {
    const of = (value: number) => Program.digest(Program.body([], [T.constant(value)]))
    assert.strictEqual(new Set([Infinity, -Infinity, NaN, 0, -0].map(of)).size, 5)
  })
})
