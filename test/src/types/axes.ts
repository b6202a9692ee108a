/**
 * Programs that must not compile: every line under an expected error is one. Nothing here runs; an error that stops being one fails the type check.
 */
import * as Axis from "@tessera/core/Axis"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import type { PrimitiveName } from "@tessera/core/primitives/all"
import type * as Random from "@tessera/core/Random"
import type { Tensor } from "@tessera/core/Tensor"
import * as T from "@tessera/core/Tensor"
import type { Samples } from "../samples/samples.ts"

declare const x: Tensor<"batch" | "seq" | "embed">
declare const weight: Tensor<"embed" | "mlp">
declare const ids: Tensor<"batch" | "seq", "int">
declare const mask: Tensor<"batch" | "seq", "bool">
declare const key: Random.Key

export const contractions = () => {
  const hidden: Tensor<"batch" | "seq" | "mlp"> = T.contract(x, weight, "embed")
  // @ts-expect-error the weight has no such axis
  T.contract(x, weight, "seq")
  // @ts-expect-error the value has no such axis
  T.contract(x, weight, "mlp")
  // @ts-expect-error nobody has this axis
  T.contract(x, weight, "vocab")
  // @ts-expect-error "embed" was summed over
  const kept: Tensor<"batch" | "seq" | "embed" | "mlp"> = T.contract(x, weight, "embed")
  // @ts-expect-error "seq" is still there
  const lost: Tensor<"batch" | "mlp"> = T.contract(x, weight, "embed")
  // @ts-expect-error numbers of classes are no floats
  T.contract(ids, ids, "seq")
  return [hidden, kept, lost]
}

export const sums = () => {
  const sum: Tensor<"batch" | "seq" | "embed" | "mlp"> = T.add(x, weight)
  // @ts-expect-error the sum has the axes of both
  const narrow: Tensor<"batch" | "seq" | "embed"> = T.add(x, weight)
  // @ts-expect-error axes are exact: one too many is wrong as well
  const wide: Tensor<"batch" | "seq" | "embed" | "heads"> = x
  // @ts-expect-error floats and integers do not add
  T.add(x, ids)
  // @ts-expect-error no such axis to sum over
  T.sum(x, "mlp")
  // @ts-expect-error nor to average over
  T.mean(x, "mlp")
  const rows: Tensor<"batch"> = T.sum(x, "seq", "embed")
  return [sum, narrow, wide, rows]
}

export const axes = () => {
  const renamed: Tensor<"batch" | "keySeq" | "embed"> = T.rename(x, "seq", "keySeq")
  // @ts-expect-error no such axis to rename
  T.rename(x, "heads", "keyHeads")
  // @ts-expect-error it is called "keySeq" now
  const old: Tensor<"batch" | "seq" | "embed"> = T.rename(x, "seq", "keySeq")
  const parts: Tensor<"batch" | "seq" | "heads" | "headDim"> = T.split(x, "embed", {
    outer: "heads",
    inner: "headDim",
    size: 4
  })
  // @ts-expect-error no such axis to split
  T.split(x, "mlp", { outer: "heads", inner: "headDim", size: 4 })
  // @ts-expect-error the inner axis is missing
  T.merge(x, "batch", "heads", "rows")
  // @ts-expect-error no such axis to cut
  T.slice(x, "patch", { to: "first", start: 0, size: 1 })
  const spread: Tensor<"batch" | "seq" | "embed" | "heads"> = T.broadcast(x, [
    Axis.make("batch", 1),
    Axis.make("seq", 1),
    Axis.make("embed", 1),
    Axis.make("heads", 1)
  ])
  return [renamed, old, parts, spread]
}

export const kinds = () => {
  const chosen: Tensor<"batch" | "seq" | "embed"> = T.select(mask, x, x)
  // @ts-expect-error a choice needs booleans
  T.select(x, x, x)
  // @ts-expect-error integers have no exponential
  T.exp(ids)
  // @ts-expect-error rows are looked up by integers
  T.lookup(weight, "embed", x)
  // @ts-expect-error the table has no such axis
  T.lookup(weight, "vocab", ids)
  // @ts-expect-error a mask is no number
  T.mul(mask, x)
  // @ts-expect-error an index is an integer
  const index: Tensor<"batch" | "seq"> = T.argmax(x, "embed")
  return [chosen, index]
}

export const composites = () => {
  T.layerNorm(x, "embed", 1e-5, T.sum(weight, "mlp"))
  // @ts-expect-error no such axis to normalise
  T.layerNorm(x, "mlp", 1e-5)
  // @ts-expect-error the weights have another axis
  T.layerNorm(x, "embed", 1e-5, T.sum(weight, "embed"))
  // @ts-expect-error the classes are no axis of the logits
  T.softmaxCrossEntropy(x, ids, { classes: "vocab" })
  // @ts-expect-error the loss has no classes left
  const loss: Tensor<"batch" | "seq" | "embed"> = T.softmaxCrossEntropy(x, ids, { classes: "embed" })
  // @ts-expect-error keys and values have the same axes
  T.attention(x, T.rename(x, "seq", "keySeq"), x, { query: "seq", key: "keySeq", depth: "embed" })
  // @ts-expect-error a softmax runs along an axis that is there
  T.softmax(x, "classes")
  return loss
}

export const modules = () => {
  const dense = Module.make(
    {
      weight: Module.param({ embed: 4, mlp: 8 }, Init.xavierUniform("embed")),
      bias: Module.param({ mlp: 8 }, Init.zeros)
    },
    (p, input: Tensor<"batch" | "embed">): Tensor<"batch" | "mlp"> =>
      T.add(T.contract(input, p.weight, "embed"), p.bias)
  )
  const call = Module.training(key)
  const good = { weight, bias: T.sum(weight, "embed") }
  dense.apply(good, T.sum(x, "seq"), call)
  // @ts-expect-error the bias is missing
  dense.apply({ weight }, T.sum(x, "seq"), call)
  // @ts-expect-error the bias has another axis
  dense.apply({ weight, bias: T.sum(weight, "mlp") }, T.sum(x, "seq"), call)
  // @ts-expect-error the input still has "seq"
  dense.apply(good, x, call)
  // @ts-expect-error training needs a key
  dense.apply(good, T.sum(x, "seq"), { train: true })
  // @ts-expect-error no such parameter
  Module.make({ weight: Module.param({ embed: 4 }, Init.ones) }, (p) => p.bias)
  // @ts-expect-error a parameter has sizes, not only names
  Module.param(["embed"], Init.ones)
  const stacked = Module.stack(
    Module.make({ scale: Module.param({ embed: 4 }, Init.ones) }, (p, layer: Module.Layer<"batch" | "embed">) => ({
      value: T.mul(layer.value, p.scale),
      captured: {}
    })),
    3
  )
  // @ts-expect-error the parameters of a stack have the axis "layers"
  stacked.apply({ scale: T.sum(weight, "mlp") }, { value: T.sum(x, "seq") }, call)
  return stacked
}

/** A table of samples that lacks a primitive is a type error. */
export const tables = (complete: Samples) => {
  const { add: _, ...rest } = complete
  // @ts-expect-error "add" is missing
  const short: Samples = rest
  // @ts-expect-error no primitive has this name
  const name: PrimitiveName = "convolution"
  return [short, name]
}
