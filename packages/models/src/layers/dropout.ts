/** What training leaves out at random. Every function is the identity in evaluation and at rate 0. */
import * as Axis from "@tessera/core/Axis"
import { invalid } from "@tessera/core/Errors"
import * as Module from "@tessera/core/Module"
import * as Random from "@tessera/core/Random"
import * as T from "@tessera/core/Tensor"

const keyOf = (operation: string, call: Module.Call): Random.Key =>
  call.key ?? invalid(operation, "training draws random numbers; the call has no key (use Module.training)")

/** Zeroes elements with probability `rate`, scales the rest by 1 / (1 - rate). `name` tells the uses within one module apart. `[..] -> [..]` */
export const apply = <A extends string>(x: T.Tensor<A>, rate: number, name: string, call: Module.Call): T.Tensor<A> => {
  if (!call.train || rate === 0) return x
  const keep = Random.keep(Random.child(keyOf("dropout", call), name), x.type.axes, rate)
  return T.select(keep, T.scale(x, 1 / (1 - rate)), T.constant(0, x.type.dtype)) as T.AnyTensor
}

/**
 * Drops the whole branch of a sample with probability `rate`, a scalar in [0, 1): `x / keep x floor(keep + U)`, one U a sample. `[batch, ..] -> [batch, ..]`
 * @source arXiv:1603.09382; NVIDIA/NeMo@r1.23.0 nemo/collections/vision/modules/common/megatron/vision_transformer.py DropPath
 */
export const path = <A extends string>(
  x: T.Tensor<A | "batch">,
  rate: T.Tensor<never> | undefined,
  name: string,
  call: Module.Call
): T.Tensor<A | "batch"> => {
  if (!call.train || rate === undefined) return x
  const keep = T.shift(T.neg(rate), 1)
  const drawn = Random.uniform(
    Random.child(keyOf("drop path", call), name),
    x.type.axes.filter((a) => a.name === "batch")
  )
  const factor = T.div(T.floor(T.add(keep, drawn)), keep)
  return T.mul(x, T.cast(factor, x.type.dtype) as T.Tensor<"batch">)
}

/** Rates of `layers` layers, linearly from 0 to `rate`; undefined where nothing is dropped. `-> [layers]` */
export const pathRates = (rate: number, layers: number): T.Tensor<"layers"> | undefined =>
  rate === 0
    ? undefined
    : T.scale(T.cast(T.iota("layers", layers), "f32") as T.Tensor<"layers">, layers === 1 ? 0 : rate / (layers - 1))

/** How many of `patches` patches are kept: max(1, floor(patches (1 - rate))). */
export const keptPatches = (patches: number, rate: number): number => Math.max(1, Math.floor(patches * (1 - rate)))

/**
 * Keeps the same number of random patches in every sample, in random order. `[batch, patch, embed] -> [batch, kept, embed]`. A patch's rank is the number
 * of patches with a smaller random word (ties by index); slot s takes the patch of rank s.
 * @source arXiv:2212.00794, section 3
 */
export const patches = (
  x: T.Tensor<"batch" | "patch" | "embed">,
  rate: number,
  call: Module.Call
): T.Tensor<"batch" | "kept" | "embed"> => {
  const count = T.sizeOf(x, "patch")
  const at = [Axis.find(x.type.axes, "batch")!, Axis.make("patch", count)]
  const words = Random.bits(Random.child(keyOf("drop patch", call), "dropPatch"), at) as T.AnyTensor as T.Tensor<
    "batch" | "patch",
    "int"
  >
  const others = T.rename(words, "patch", "otherPatch")
  const before = T.less(T.iota("otherPatch", count), T.iota("patch", count))
  const smaller = T.or(T.less(others, words), T.and(T.equal(others, words), before))
  const rank = T.sum(T.select(smaller, whole(1), whole(0)), "otherPatch")
  const slot = T.iota("kept", keptPatches(count, rate))
  const chosen = T.sum(T.select(T.equal(rank, slot), T.iota("patch", count), whole(0)), "patch")
  return T.lookup(x, "patch", chosen)
}

const whole = (value: number): T.Tensor<never, "int"> => T.constant(value, "i32") as unknown as T.Tensor<never, "int">
