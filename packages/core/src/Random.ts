/**
 * Counter-based randomness. Bits depend on (run seed, step, module path, layer, example, element) and on nothing else: not on the layout, the
 * number of ranks, microbatches or threads. Threefry-2x32-20 per element.
 */
import * as Axis from "./Axis.ts"
import type { AnyTensor, Tensor } from "./Node.ts"
import { add, broadcast, cast, constant, mul, scale, shift } from "./primitives/algebra.ts"
import { iota } from "./primitives/index.ts"
import { cos, div256, equal, less, log, not, randomBits, select, sqrt } from "./primitives/pointwise.ts"

type Word<A extends string> = Tensor<A, "int">

/** Where a stream of random bits comes from. */
export interface Key {
  /** u32 scalar: differs by run and step. */
  readonly seed: Word<never>
  /** u32 scalar: differs by module path and layer. */
  readonly stream: Word<never>
  /** u32, one a `[batch]` element: the logical index of every example; null where nothing depends on examples. */
  readonly example: AnyTensor | null
}

const word = (value: number): Word<never> => constant(value, "u32") as unknown as Word<never>

/** FNV-1a of a text: names become stream numbers. */
const hash = (text: string): number => {
  let h = 0x811c9dc5
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193) >>> 0
  return h
}

export const make = (seed: Word<never>, example: AnyTensor | null = null): Key => ({ seed, stream: word(0), example })

/** The key of a part, by name. */
export const child = (key: Key, name: string): Key => ({
  ...key,
  stream: randomBits(word(hash(name)), key.stream, word(1), word(0))
})

/** The key of one repetition of a stack; `index` is a u32 scalar. */
export const at = (key: Key, index: Word<never>): Key => ({
  ...key,
  stream: randomBits(key.stream, word(0x5bd1e995), index, word(2))
})

/** Words over `axes`. With an example counter, its axes must be among them. */
export const bits = (key: Key, axes: Axis.Axes): Word<string> => {
  const own = key.example === null ? [] : Axis.names(key.example.type.axes)
  let element = word(0) as AnyTensor as Word<string>
  const counted = Axis.without(axes, own)
  for (const axis of counted) {
    // Elements count by name, while the result keeps the memory order asked for.
    const stride = counted.reduce((n, a) => (a.name > axis.name ? n * a.logical : n), 1)
    element = add(element, mul(iota(axis.name, axis.size, "u32"), word(stride >>> 0)))
  }
  const example = (key.example ?? word(0)) as Word<string>
  // In the memory order asked for, or a mask would turn what it is applied to.
  return randomBits(key.seed, key.stream, example, broadcast(element, axes))
}

/** Uniform in [0, 1) with 24 bits: `(word >> 8) * 2^-24`. */
export const uniform = (key: Key, axes: Axis.Axes): Tensor<string> => unit(bits(key, axes))

const unit = (w: Word<string>): Tensor<string> => scale(cast(div256(w), "f32") as Tensor<string>, 2 ** -24)

/** Standard normal by Box and Muller, from two words an element. */
export const normal = (key: Key, axes: Axis.Axes): Tensor<string> => {
  const radius = sqrt(scale(log(shift(scale(uniform(child(key, "radius"), axes), -1), 1)), -2))
  return mul(radius, cos(scale(uniform(child(key, "angle"), axes), 2 * Math.PI)))
}

/** 1 where an element is kept: probability 1 - rate. */
export const keep = (key: Key, axes: Axis.Axes, rate: number): Tensor<string, "bool"> =>
  not(less(uniform(key, axes), constant(rate)))

/** The two key words as one tensor `[word=2]`, for kernels that draw their own bits. */
export const words = (key: Key): Tensor<"word", "int"> =>
  select(equal(iota("word", 2, "u32"), word(0)), key.seed, key.stream) as Tensor<"word", "int">
