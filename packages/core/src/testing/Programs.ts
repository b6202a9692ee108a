/**
 * Random well-typed programs, for laws about passes and backends: graphs of primitives over a few axis names that end in a scalar loss, loops and
 * recomputed regions among them. They shrink towards fewer equations over smaller inputs.
 */
import * as fc from "fast-check"
import * as Axis from "../Axis.ts"
import * as Gradient from "../Gradient.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { AnyTensor, Body, Tensor, TensorType } from "../Node.ts"
import { input } from "../Node.ts"
import * as Program from "../Program.ts"
import * as Random from "../Random.ts"
import * as T from "../Tensor.ts"
import * as Dice from "./Dice.ts"

/** A program with inputs to run it on. */
export interface Example {
  readonly name: string
  readonly body: Body
  readonly arrays: ReadonlyArray<HostArray>
}

type F = Tensor<string>
type I = Tensor<string, "int">

const allSizes = { batch: 2, seq: 3, embed: 4 } as const
const axes = (mask: number) =>
  Axis.list(Object.fromEntries(Object.entries(allSizes).filter((_, i) => ((mask >> i) & 1) === 1)))

/** What an operation of a random program may read: two float values, ids of examples, a key, and a number to choose by. */
interface Given {
  readonly x: F
  readonly y: F
  readonly ids: I
  readonly key: Random.Key
  readonly choice: number
}

// Names are known only at run time here.
const sum = T.sum as unknown as (x: F, ...over: ReadonlyArray<string>) => F
const mean = T.mean as unknown as typeof sum
const contract = T.contract as unknown as (x: F, y: F, ...over: ReadonlyArray<string>) => F

const axisOf = (x: F, choice: number): string | null =>
  x.type.axes.length === 0 ? null : x.type.axes[choice % x.type.axes.length]!.name

/** Uses an axis if there is one, else gives the value itself. */
const withAxis = (x: F, choice: number, f: (axis: string) => F): F => {
  const axis = axisOf(x, choice)
  return axis === null ? x : f(axis)
}

const operations: ReadonlyArray<(g: Given) => F> = [
  ({ x, y }) => T.add(x, y),
  ({ x, y }) => T.mul(x, y),
  ({ x, y }) => T.sub(x, y),
  ({ x, y }) => T.div(x, T.shift(T.mul(y, y), 1)),
  ({ x }) => T.tanh(x),
  ({ choice, x }) => T.gelu(x, (["erf", "tanh", "quick"] as const)[choice % 3]!),
  ({ x }) => T.exp(T.tanh(T.neg(x))),
  ({ x }) => T.sqrt(T.shift(T.abs(x), 0.5)),
  ({ choice, x, y }) => {
    const shared = x.type.axes.filter((a) => Axis.has(y.type.axes, a.name))
    return shared.length === 0 ? T.mul(x, y) : contract(x, y, shared[choice % shared.length]!.name)
  },
  ({ choice, x }) => withAxis(x, choice, (axis) => sum(x, axis)),
  ({ choice, x }) => withAxis(x, choice, (axis) => T.cumsum(x, axis)),
  ({ choice, x }) => withAxis(x, choice, (axis) => T.layerNorm(x, axis, 0.1)),
  ({ choice, x }) => withAxis(x, choice, (axis) => T.softmax(x, axis)),
  ({ x, y }) => T.maximum(x, y),
  ({ x, y }) => T.select(T.less(x, y), T.scale(x, 0.5), y),
  ({ choice, x }) => T.broadcast(x, Axis.inOrder("broadcast", [axes(choice % 8), x.type.axes])),
  ({ choice, x }) =>
    withAxis(x, choice, (axis) => {
      const size = T.sizeOf(x, axis)
      const head = T.slice(x, axis, { to: "head", start: 0, size: 1 })
      const tail = T.slice(x, axis, { to: "tail", start: 1, size: size - 1 })
      return T.concat(
        [
          [tail, "tail"],
          [head, "head"]
        ],
        axis
      ) as F
    }),
  ({ choice, x }) =>
    withAxis(x, choice, (axis) => {
      const parts = T.split(x, axis, { outer: "outer", inner: "inner", size: T.sizeOf(x, axis) })
      return T.merge(parts, "inner", "outer", axis) as F
    }),
  ({ choice, x, y }) =>
    withAxis(x, choice, (axis) => {
      if (!Axis.has(y.type.axes, axis)) return T.mul(x, y)
      return contract(contract(x, T.rename(y, axis, "other") as F), T.rename(x, axis, "other") as F, "other")
    }),
  ({ ids, x }) => (Axis.has(x.type.axes, "embed") ? T.lookup(x, "embed", ids) : x),
  ({ choice, x }) => (choice % 2 === 0 ? T.stopGradient(x) : T.named(x, `mark${choice % 3}`)),
  ({ key, x }) => {
    // One bit for each element, per example.
    const shape = Axis.has(x.type.axes, "batch") ? x.type.axes : [...axes(1), ...x.type.axes]
    return T.mul(x, T.cast(Random.keep(key, shape, 0.25), "f32") as F)
  },
  ({ choice, x, y }) =>
    T.recompute([x, y], ([a, b]) => [
      choice % 2 === 0 ? T.tanh(T.mul(a as F, b as F)) : T.add(T.sin(a as F), T.mul(a as F, a as F))
    ])[0] as F,
  ({ choice, x, y }) => {
    const other = choice % 2 === 0 ? x : T.add(x, y)
    const layers = T.broadcast(T.sin(x), [Axis.make("layers", 3), ...x.type.axes])
    const results = T.scan("layers", { carried: [other], each: [layers], fixed: [y] }, ({ carried, each, fixed }) => {
      const value = T.add(T.tanh(carried[0] as F), T.scale(each[0] as F, 0.5))
      return { carried: [value], stacked: [T.mul(value, fixed[0] as F)], summed: [T.mul(each[0] as F, fixed[0] as F)] }
    })
    const summed = results.summed[0] as F
    return T.add(T.add(results.carried[0] as F, sum(results.stacked[0] as F, "layers")), summed)
  }
]

/** What a random program is made from. */
export interface Recipe {
  /** Operations on values made before, the newest last. Numbers beyond what there is count from the beginning again. */
  readonly steps: ReadonlyArray<readonly [operation: number, left: number, right: number, choice: number]>
  /** For every float input, which axes it has. */
  readonly masks: ReadonlyArray<number>
  readonly seed: number
}

/** The program of a recipe: inputs are floats over subsets of the axes, ids `[seq]`, example counters `[batch]` and a seed. */
export const build = ({ masks, seed, steps }: Recipe): Example => {
  const dice = Dice.make(seed)
  const types: Array<TensorType> = masks.map((mask) => ({ axes: dice.shuffle(axes(mask)), dtype: "f32" }))
  const floats = types.map((t) => input(t))
  const ids = input({ axes: axes(2), dtype: "i32" })
  const examples = input({ axes: axes(1), dtype: "u32" })
  const runSeed = input({ axes: [], dtype: "u32" })
  const key = Random.make(runSeed as Tensor<never, "int">, examples)
  const pool: Array<F> = [...floats] as Array<F>
  steps.forEach(([operation, left, right, choice], i) => {
    const made = operations[operation % operations.length]!({
      x: pool[left % pool.length]!,
      y: pool[right % pool.length]!,
      ids: ids as I,
      key: Random.child(key, `step${i}`),
      choice
    })
    // Products of products stay small.
    pool.push(i % 3 === 2 ? T.tanh(made) : made)
  })
  const used = pool.slice(-4)
  const loss = used.reduce<F>(
    (total, x) => T.add(total, mean(x, ...Axis.names(x.type.axes))),
    T.constant(0) as AnyTensor as F
  )
  const arrays = types.map((t) =>
    Host.make(
      t.axes,
      "f32",
      Float64Array.from({ length: Axis.count(t.axes) }, () => dice.next() * 2 - 1)
    )
  )
  return {
    name: "random",
    body: Program.body([...floats, ids, examples, runSeed], [loss]),
    arrays: [
      ...arrays,
      Host.make(axes(2), "i32", [1, 3, 7]),
      Host.make(axes(1), "u32", [dice.int(0, 99), 7]),
      Host.scalar(dice.int(0, 1000), "u32")
    ]
  }
}

const step = fc.tuple(fc.integer({ min: 0, max: operations.length - 1 }), fc.nat(11), fc.nat(11), fc.nat(23))

const recipes: fc.Arbitrary<Recipe> = fc.record({
  steps: fc.array(step, { minLength: 1, maxLength: 10 }),
  masks: fc.array(fc.integer({ min: 0, max: 7 }), { minLength: 2, maxLength: 3 }),
  seed: fc.nat(2 ** 31 - 1)
})

/** Programs with a scalar output. */
export const forward: fc.Arbitrary<Example> = recipes.map(build)

/** The same with the gradients of all float inputs. */
export const withGradients: fc.Arbitrary<Example> = recipes.map((recipe) => {
  const { arrays, body } = build(recipe)
  return {
    name: "random with gradients",
    body: Gradient.valueAndGrad(
      body,
      recipe.masks.map((_, i) => i)
    ),
    arrays
  }
})

/** Both kinds. */
export const all: fc.Arbitrary<Example> = fc.oneof(forward, withGradients)
