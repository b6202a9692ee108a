/** Plans keep meaning: scans, donations and several outputs in any combination, against the evaluator, and a second run on the same memory. */
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import type { CollectiveError, CompileError, DeviceError } from "@tessera/core/Errors"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import type { AnyTensor, Tensor } from "@tessera/core/Node"
import * as Node from "@tessera/core/Node"
import { input } from "@tessera/core/Node"
import { all } from "@tessera/core/primitives/all"
import * as Program from "@tessera/core/Program"
import type { Buffer } from "@tessera/core/services/Backend"
import { Backend } from "@tessera/core/services/Backend"
import * as T from "@tessera/core/Tensor"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import type * as Scope from "effect/Scope"
import * as fc from "fast-check"
import { afterAll, describe, expect, it } from "vitest"
import type { Example } from "@tessera/core/testing/Programs"
import { all as programs } from "@tessera/core/testing/Programs"
import * as Dice from "@tessera/core/testing/Dice"
import { disagreement } from "./agreement.ts"

const runtime = ManagedRuntime.make(CpuBackend.layerWith({ threads: 2, memory: "guarded" }))
afterAll(() => runtime.dispose())

type F = Tensor<string>
type Donated = ReadonlyArray<readonly [input: number, output: number]>

interface Case extends Example {
  readonly donated: Donated
}

/** Names are known only at run time here. */
const sum = T.sum as unknown as (x: F, ...over: ReadonlyArray<string>) => F
const contract = T.contract as unknown as (x: F, y: F, ...over: ReadonlyArray<string>) => F
const rename = T.rename as unknown as (x: F, from: string, to: string) => F

/** Both axes have one size, so that a value can stand in the place of its transposed self. */
const side = 3
const square = Axis.list({ x: side, y: side })
const isSquare = (x: AnyTensor) => Axis.equal(x.type.axes, square) && x.type.dtype === "f32"

const turned = (x: F): F => rename(rename(rename(x, "x", "z"), "y", "x"), "z", "y")

const repeated = (dice: Dice.Dice, pool: ReadonlyArray<F>, depth: number): ReadonlyArray<F> => {
  const size = dice.int(0, 3)
  const each = T.broadcast(T.sin(dice.pick(pool)), [Axis.make(`n${depth}`, size), ...square])
  const carried = Array.from({ length: dice.int(0, 3) }, () => dice.pick(pool))
  const axis = `n${depth}`
  const out = T.scan(
    axis,
    { carried, each: [each, each].slice(0, dice.int(1, 2)), fixed: [dice.pick(pool), dice.pick(pool)] },
    (inside) => {
      const start = [...inside.carried, ...inside.each, ...inside.fixed] as ReadonlyArray<F>
      const all = grow(dice, start, dice.int(0, 4), depth + 1)
      // One value in several places, carried on under another number, or not changed at all: what plans share memory for.
      const likely = [...inside.carried, ...all.slice(-2)] as ReadonlyArray<F>
      const one = () => dice.pick(dice.chance(0.7) ? likely : all)
      const some = (most: number) => Array.from({ length: dice.int(0, most) }, one)
      const values = { carried: inside.carried.map(one), stacked: some(2), summed: some(3) }
      const none = values.carried.length + values.stacked.length + values.summed.length === 0
      return none ? { ...values, summed: [dice.pick(all)] } : values
    }
  )
  const { inputs, outputs, params, primitive } = [...out.carried, ...out.stacked, ...out.summed][0]!.equation!
  // The other way round, as derivatives run.
  const all = dice.chance(0.4) ? Node.build(primitive, inputs, { ...params, reverse: true }, "compute") : outputs
  const last = out.carried.length + out.stacked.length
  return [
    ...all.slice(0, out.carried.length),
    ...all.slice(last),
    ...all
      .slice(out.carried.length, last)
      .map((s) =>
        size > 1 && dice.chance(0.5)
          ? sum(T.slice(s as F, axis, { to: "cut", start: 1, size: size - 1 }) as F, "cut")
          : sum(s as F, axis)
      )
  ] as ReadonlyArray<F>
}

/** More values [x, y] from those there are. */
const grow = (dice: Dice.Dice, start: ReadonlyArray<F>, steps: number, depth: number): ReadonlyArray<F> => {
  const pool = [...start]
  for (let i = 0; i < steps; i++) {
    const [a, b] = [dice.pick(pool), dice.pick(pool)]
    const axis = dice.pick(["x", "y"])
    const make: ReadonlyArray<() => ReadonlyArray<F>> = [
      () => [T.tanh(a)],
      () => [T.tanh(T.add(a, b))],
      () => [T.tanh(T.mul(a, b)), T.neg(a)],
      () => [T.tanh(T.cumsum(a, axis) as F)],
      () => [turned(a)],
      () => [T.tanh(T.sub(turned(a), b))],
      () => [T.named(a, "mark") as F],
      () => [T.tanh(contract(rename(a, "y", "k"), rename(b, "x", "k"), "k"))],
      () => {
        const [left, right] = [rename(a, "y", "k"), rename(b, "x", "k")]
        const product = T.add(contract(left, right, "k"), dice.pick(pool))
        return [T.tanh(product), T.tanh(contract(left, rename(dice.pick(pool), "x", "k"), "k"))]
      },
      () => [
        T.tanh(
          T.add(
            contract(rename(a, "y", "k"), rename(b, "x", "k"), "k"),
            contract(rename(dice.pick(pool), "x", "k"), rename(dice.pick(pool), "y", "k"), "k")
          )
        )
      ],
      () => {
        const cut = dice.int(1, side - 1)
        const head = T.slice(a, axis, { to: "head", start: 0, size: cut })
        const tail = T.slice(dice.chance(0.5) ? a : b, axis, { to: "tail", start: cut, size: side - cut })
        const parts = [
          [head, "head"],
          [dice.chance(0.5) ? T.neg(tail) : tail, "tail"]
        ] as ReadonlyArray<readonly [F, string]>
        return [T.concat(dice.chance(0.5) ? parts : parts.toReversed(), axis) as F]
      },
      () => [T.merge(T.split(a, axis, { outer: "o", inner: "i", size: side }), "i", "o", axis) as F],
      () => [T.broadcast(T.tanh(sum(a, axis)), square) as F],
      () => T.recompute([a, b], ([p, q]) => [q!, T.tanh(T.add(p as F, q as F)), p!]) as ReadonlyArray<F>,
      () => [T.broadcast(T.constant(dice.int(-2, 2)) as AnyTensor as F, square) as F],
      () => [T.softmax(a, axis) as F],
      () => (depth < 2 ? repeated(dice, pool, depth) : [T.cos(a)])
    ]
    pool.push(...dice.pick(make)())
  }
  return pool
}

const build = (seed: number): Case => {
  const dice = Dice.make(seed)
  const inputs = Array.from({ length: dice.int(2, 4) }, () => input({ axes: dice.shuffle(square), dtype: "f32" }))
  const first = grow(dice, inputs as ReadonlyArray<F>, dice.int(0, 3), 0)
  const results = repeated(dice, first, 0)
  const all = grow(dice, [...first, ...results], dice.int(0, 4), 0)
  const outputs = Array.from({ length: dice.int(1, 6) }, () => dice.pick(dice.chance(0.6) ? results : all))
  const from = dice.shuffle(inputs.map((_, i) => i)).slice(0, dice.int(0, inputs.length))
  const to = dice.shuffle(outputs.map((_, i) => i).filter((i) => isSquare(outputs[i]!)))
  return {
    name: `seed ${seed}`,
    body: Program.body(inputs, outputs),
    arrays: inputs.map((x) =>
      Host.make(
        x.type.axes,
        "f32",
        Float64Array.from({ length: side * side }, () => Math.fround(dice.next() * 2 - 1))
      )
    ),
    donated: from.slice(0, to.length).map((i, k) => [i, to[k]!] as const)
  }
}

/** Loops whose slices another loop adds up, as gradients of layers add up over microbatches: read by nobody else, or by others too, or taken twice. */
const nested = (seed: number): Case => {
  const dice = Dice.make(seed)
  const inputs = Array.from({ length: 2 }, () => input({ axes: dice.shuffle(square), dtype: "f32" }))
  const [x, y] = inputs as ReadonlyArray<AnyTensor> as readonly [F, F]
  const [outerSize, innerSize] = [dice.int(0, 3), dice.int(0, 3)]
  const along = (a: F, name: string, size: number) => T.sin(T.broadcast(a, [Axis.make(name, size), ...square]) as F)
  const outer = T.scan("n", { carried: [y], each: [along(x, "n", outerSize)], fixed: [x] }, (inside) => {
    const [c, e, f] = [...inside.carried, ...inside.each, ...inside.fixed] as ReadonlyArray<AnyTensor> as [F, F, F]
    const inner = T.scan("m", { carried: [c], each: [along(e, "m", innerSize)], fixed: [f] }, (deep) => {
      const [p, q, r] = [...deep.carried, ...deep.each, ...deep.fixed] as ReadonlyArray<AnyTensor> as [F, F, F]
      const values = [T.tanh(T.add(p, q)), T.mul(q, r), p, turned(q)]
      const one = () => dice.pick(values)
      return { carried: [one()], stacked: [one(), one()], summed: [one()] }
    })
    const stacks = inner.stacked as ReadonlyArray<F>
    const marked = dice.chance(0.4) ? (T.named(stacks[0]!, "mark") as F) : stacks[0]!
    const summed = [marked, ...(dice.chance(0.4) ? [stacks[1]!] : []), ...(dice.chance(0.3) ? [stacks[0]!] : [])]
    const carried = dice.chance(0.3) && innerSize > 0 ? sum(stacks[0]!, "m") : (inner.carried[0] as F)
    return { carried: [T.tanh(carried)], stacked: [], summed: [...summed, inner.summed[0]!] }
  })
  const outputs = [...outer.carried, ...outer.summed]
  return {
    name: `nested ${seed}`,
    body: Program.body(inputs, outputs),
    arrays: inputs.map((i) =>
      Host.make(
        i.type.axes,
        "f32",
        Float64Array.from({ length: side * side }, () => Math.fround(dice.next() * 2 - 1))
      )
    ),
    donated: []
  }
}

/** Graphs of all kinds of operations, any of their values being outputs, written over inputs of the same type. */
const graphs: fc.Arbitrary<Case> = fc.tuple(programs, fc.nat(2 ** 31 - 1)).map(([example, seed]) => {
  const dice = Dice.make(seed)
  const { body } = example
  const inner = body.equations.flatMap((e) => e.outputs)
  const outputs = [
    ...body.outputs,
    ...Array.from({ length: dice.int(0, 4) }, () => dice.pick([...inner, ...body.inputs]))
  ]
  const donated: Array<readonly [number, number]> = []
  for (const [to, o] of outputs.entries()) {
    const from = body.inputs.findIndex(
      ({ type }, i) =>
        type.dtype === o.type.dtype && Axis.equal(type.axes, o.type.axes) && !donated.some((d) => d[0] === i)
    )
    if (from >= 0 && dice.chance(0.7)) donated.push([from, to])
  }
  return { name: "graph", body: Program.body(body.inputs, outputs), arrays: example.arrays, donated }
})

/** Results of two runs on the same inputs. */
const twice = ({ arrays, body, donated }: Case) =>
  Effect.gen(function* () {
    const backend = yield* Backend
    const executable = yield* backend.compile(Program.make([...body.inputs], [...body.outputs]), { donated })
    const buffers = yield* Effect.forEach(body.inputs, (x) => backend.allocate(x.type))
    const once = Effect.gen(function* () {
      for (const [i, b] of buffers.entries()) {
        yield* backend.write(b, Host.toBytes(Host.reorder(arrays[i]!, b.type.axes)))
      }
      const outputs = yield* executable.run(buffers)
      const results = yield* Effect.forEach(outputs, (o) =>
        Effect.map(backend.read(o), (bytes) => Host.fromBytes(o.type.axes, o.type.dtype, bytes))
      )
      const given = new Set(donated.map(([from]) => from))
      for (const [i, b] of buffers.entries()) {
        const bytes = yield* backend.read(b)
        if (!given.has(i)) expect(bytes, `input ${i} stays`).toEqual(Host.toBytes(arrays[i]!))
      }
      return results
    })
    return [yield* once, yield* once]
  }).pipe(Effect.scoped, (e) => runtime.runPromise(e))

const check = async (c: Case) => {
  const expected = Evaluate.runUnsafe(c.body, c.arrays)
  for (const found of await twice(c)) {
    expected.forEach((e, i) => {
      const problem = disagreement(e, found[i]!, c.arrays, e.dtype === "f32" ? 2e-4 : 0.1)
      if (problem !== null)
        throw new Error(
          `${c.name}, output ${i}: ${problem}\n${Program.print(c.body)}\ndonated ${JSON.stringify(c.donated)}`
        )
    })
  }
}

describe("planned memory", () => {
  it("keeps what scans with donated inputs and many outputs mean", async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(2 ** 31 - 1), (seed) => check(build(seed))),
      { numRuns: 800 }
    )
  })
  it("keeps what loops mean whose slices another loop adds up", async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(2 ** 31 - 1), (seed) => check(nested(seed))),
      { numRuns: 300 }
    )
  })
  it("keeps what graphs with donated inputs and many outputs mean", async () => {
    const details = await fc.check(fc.asyncProperty(graphs, check), { numRuns: 200 })
    expect(details.failed ? String(details.errorInstance) : null).toBeNull()
  })
})

/** The smallest programs that once came out wrong. */
describe("regressions", () => {
  const make = (sizes: Readonly<Record<string, number>>, dtype: DType.DType = "f32") =>
    input({ axes: Axis.list(sizes), dtype }) as AnyTensor as F
  const product = (x: F, y: F, over: ReadonlyArray<string>, dtype: DType.DType = "f32") =>
    Node.build(all.contract, [x, y], { over, dtype }, "compute")[0] as F
  const agrees = (inputs: ReadonlyArray<AnyTensor>, outputs: ReadonlyArray<AnyTensor>, donated: Donated = []) => {
    const dice = Dice.make(7)
    const value = (dtype: DType.DType) =>
      DType.kindOf(dtype) === "float" ? Math.fround(dice.next() * 2 - 1) : dice.int(0, 9)
    const arrays = inputs.map(({ type: { axes, dtype } }) =>
      Host.make(
        axes,
        dtype,
        Float64Array.from({ length: Axis.count(axes) }, () => value(dtype))
      )
    )
    return check({ name: "regression", body: Program.body(inputs, outputs), arrays, donated })
  }
  const [rows, columns] = [make({ a: 3, k: 4 }), make({ k: 4, b: 5 })]

  it("a carried value that begins a sum is not added to", async () => {
    const [start, other, each] = [make({ x: 3 }), make({ x: 3 }), make({ n: 2, x: 3 })]
    const r = T.scan("n", { carried: [start, other], each: [each], fixed: [] }, (inside) => {
      const value = T.tanh(inside.each[0] as F)
      return { carried: [value, inside.carried[0]!], stacked: [], summed: [value, inside.carried[0]!] }
    })
    await agrees([start, other, each], [...r.carried, ...r.summed])
  })
  it("added products: an axis of the rows and of the columns in one operand", async () => {
    const [p, q] = [make({ a: 3, b: 5, l: 4 }), make({ l: 4 })]
    await agrees([rows, columns, p, q], [T.add(product(rows, columns, ["k"]), product(p, q, ["l"]))])
  })
  it("added products: an axis of the rows in both operands", async () => {
    const [p, q] = [make({ a: 3, l: 4 }), make({ a: 3, b: 5, l: 4 })]
    await agrees([rows, columns, p, q], [T.add(product(rows, columns, ["k"]), product(p, q, ["l"]))])
  })
  it("products side by side: a summed axis that only the second operand has", async () => {
    const [p, q] = [make({ k: 4, j: 2, b: 5 }), make({ k: 4, j: 2, c: 2 })]
    await agrees([rows, p, q], [product(rows, p, ["k", "j"]), product(rows, q, ["k", "j"])])
  })
  it("added products of different storage: the f32 one is not rounded", async () => {
    const [p, q] = [make({ a: 3, l: 4 }, "bf16"), make({ l: 4, b: 5 }, "bf16")]
    const exact = T.sub(T.add(product(p, q, ["l"]), product(rows, columns, ["k"])), product(p, q, ["l"]))
    await agrees([rows, columns, p, q], [exact, T.scale(T.sub(exact, product(rows, columns, ["k"])), 100)])
  })
  it("the sign of a u32 inside a kernel keeps its register", async () => {
    const [u, v] = [make({ x: 5 }, "u32"), make({ x: 5 }, "u32")]
    const s = T.sign(u)
    await agrees([u, v], [T.mul(T.add(u, v), s), T.add(T.mul(v, v), s)])
  })
  it("coordinates may begin below zero", async () => {
    const params = { axis: Axis.make("x", 5), dtype: "i32", start: -2 }
    await agrees([make({ x: 5 })], Node.build(all.iota, [], params, "compute"))
  })
  it("a table whose coordinates are a slice of others", async () => {
    const [table, id] = [make({ v: 6, e: 3 }), make({ s: 4 }, "i32")]
    const coordinates = T.slice(T.iota("whole", 10), "whole", { to: "v", start: 2, size: 6 })
    await agrees([table, id], Node.build(all.lookup, [table, coordinates, id], { over: "v" }, "compute"))
  })
  it("a u32 start beyond what i32 holds is clamped to the end", async () => {
    const [x, part] = [make({ v: 6 }), make({ p: 2 })]
    const start = T.sub(T.constant(0, "u32"), T.constant(9, "u32")) as AnyTensor
    await agrees([x, part], Node.build(all.updateSlice, [x, part, start], { axis: "v", part: "p" }, "compute"))
  })
  it("a kernel does not load an operand that nothing reads", async () => {
    const [x, empty] = [make({ x: 5 }), make({ none: 0, x: 5 })]
    const [p, q] = [make({ x: 5 }), make({ none: 0, x: 5 })]
    const body = Program.body([p, q], [T.tanh(p)])
    await agrees([x, empty], Node.build(all.fused, [x, empty], { body, pattern: "pointwise" }, "compute"))
  })
})

describe("what cannot be written safely is refused", () => {
  const run = <A>(
    f: (backend: Backend["Service"]) => Effect.Effect<A, CompileError | DeviceError | CollectiveError, Scope.Scope>
  ) => runtime.runPromise(Effect.flip(Effect.scoped(Effect.flatMap(Backend, f))))
  const [x, y] = [input({ axes: square, dtype: "f32" }), input({ axes: square, dtype: "f32" })] as const
  const [f, g] = [x, y] as ReadonlyArray<AnyTensor> as readonly [F, F]
  const program = Program.make([x, y], [T.cumsum(f, "x"), T.cumsum(T.add(f, g), "y")])

  it("donations that pair an input or an output twice, other types, or nothing", async () => {
    const wrong: ReadonlyArray<Donated> = [
      [
        [0, 0],
        [0, 1]
      ],
      [
        [0, 0],
        [1, 0]
      ],
      [[2, 0]],
      [[0, 2]]
    ]
    for (const donated of wrong)
      expect(await run((b) => b.compile(program, { donated }))).toMatchObject({ reason: "SourceRejected" })
    const smaller = Program.make([x], [sum(f, "x")])
    expect(await run((b) => b.compile(smaller, { donated: [[0, 0]] }))).toMatchObject({ reason: "SourceRejected" })
  })
  it("a donated buffer that is another input, too; a result as input of its own program; another memory order", async () => {
    const once = (choose: (a: Buffer, c: Buffer, out: Buffer) => ReadonlyArray<Buffer>) =>
      run((backend) =>
        Effect.gen(function* () {
          const executable = yield* backend.compile(program, { donated: [[0, 0]] })
          const [a, c] = [yield* backend.allocate(x.type), yield* backend.allocate(y.type)]
          const outputs = yield* executable.run([a, c])
          return yield* executable.run(choose(a, c, outputs[1]!))
        })
      )
    expect(await once((a) => [a, a])).toMatchObject({ reason: "WrongBuffer" })
    expect(await once((a, _, out) => [a, out])).toMatchObject({ reason: "WrongBuffer" })
    const turnedType = { axes: square.toReversed(), dtype: "f32" } as const
    const other = run((backend) =>
      Effect.gen(function* () {
        const executable = yield* backend.compile(program)
        return yield* executable.run([yield* backend.allocate(x.type), yield* backend.allocate(turnedType)])
      })
    )
    expect(await other).toMatchObject({ reason: "WrongBuffer" })
  })
})
