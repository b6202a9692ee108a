import * as Alignment from "@tessera/core/Alignment"
import * as Axis from "@tessera/core/Axis"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import { expect, it } from "vitest"

const odd = (batch: number, heads: number, headDim: number, embed: number) =>
  Alignment.misaligned(
    Program.traceUnsafe(
      {
        x: { axes: Axis.list({ batch, embed }), dtype: "f32" },
        w: { axes: Axis.list({ embed, heads, headDim }), dtype: "f32" }
      },
      ({ w, x }) => T.contract(x as T.Tensor<"batch" | "embed">, w as T.Tensor<"embed" | "heads" | "headDim">, "embed")
    )
  ).map((m) => Alignment.print(m))

it("names dimensions of products that are no multiples of 8, whatever the batch", () => {
  expect(odd(3, 4, 10, 16)).toEqual([])
  expect(odd(3, 3, 10, 12)).toEqual([
    "embed = 12 is no multiple of 8; nearest: 8 or 16",
    "headDim x heads = 30 is no multiple of 8; nearest: 24 or 32"
  ])
  expect(odd(8, 1, 5, 8)).toEqual(["headDim x heads = 5 is no multiple of 8; nearest: 8"])
})
