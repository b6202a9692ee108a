import { expect, it } from "vitest"
import { compileFirst, property } from "./cases.ts"
import {
  at,
  BF16,
  BOOL,
  doubleWord,
  expectClose,
  F16,
  F32,
  floatTypes,
  hostIsas,
  I32,
  indices,
  layout,
  open,
  precision,
  type Random,
  round,
  Scene,
  U32,
  U8
} from "./harness.ts"
import { erf } from "./special.ts"

type Lane = "f" | "i" | "u" | "b"
interface Op {
  readonly code: number
  readonly takes: ReadonlyArray<Lane>
  readonly gives: Lane
  readonly f: (...x: ReadonlyArray<number>) => number
  readonly immediate?: number
  readonly rtol?: number
  readonly atol?: number
}
const f32 = Math.fround
const i32 = (x: number) => x | 0
const bit = (x: boolean) => (x ? 1 : 0)
const saturate = (low: number, high: number) => (x: number) =>
  Number.isNaN(x) ? 0 : Math.min(high, Math.max(low, Math.trunc(x)))
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x))
const tanhGelu = (x: number) => x * sigmoid(2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))
const gelus = [(x: number) => (x / 2) * (1 + erf(x / Math.SQRT2)), tanhGelu, (x: number) => x * sigmoid(1.702 * x)]
const slope = (g: (x: number) => number) => (x: number) => (g(x + 1e-5) - g(x - 1e-5)) / 2e-5
const finite = (f: (x: number) => number) => (x: number) => (Number.isFinite(x) ? f(x) : Number.NaN)

let next = 10
const floats = (takes: number, f: Op["f"], more: Partial<Op> = {}): Op => ({
  code: next++,
  takes: Array<Lane>(takes).fill("f"),
  gives: "f",
  f,
  ...more
})
const floatOps = [
  floats(2, (x, y) => x! + y!),
  floats(2, (x, y) => x! - y!),
  floats(2, (x, y) => x! * y!),
  floats(2, (x, y) => x! / y!),
  floats(2, (x, y) => Math.max(x!, y!)),
  floats(2, (x, y) => Math.min(x!, y!)),
  floats(1, (x) => -x!),
  floats(1, (x) => Math.abs(x!)),
  floats(1, (x) => Math.exp(x!), { rtol: 3e-7, atol: 2e-45 }),
  floats(1, (x) => Math.expm1(x!), { rtol: 4e-7 }),
  floats(1, (x) => Math.log(x!), { rtol: 3e-7, atol: 1e-7 }),
  floats(1, (x) => Math.tanh(x!), { rtol: 5e-7 }),
  floats(1, (x) => (Number.isFinite(x!) ? erf(x!) : Math.sign(x!)), { rtol: 3e-7 }),
  floats(1, (x) => Math.sqrt(x!)),
  floats(1, (x) => Math.sin(x!), { atol: 1e-6 }),
  floats(1, (x) => Math.cos(x!), { atol: 1e-6 }),
  floats(1, (x) => Math.floor(x!)),
  floats(1, (x) => Math.sign(x!)),
  floats(1, (x) => sigmoid(x!), { rtol: 5e-7, atol: 1e-38 })
]
const gelu = next++
const geluGradient = next++
const multiplyAdd = next
floatOps.push(
  floats(3, (x, y, z) => x! * y! + z!, { rtol: 1e-6, atol: 1e-5 }),
  ...gelus.flatMap((g, i): ReadonlyArray<Op> => [
    { code: gelu, takes: ["f"], gives: "f", f: (x) => finite(g)(x!), immediate: i + 1, rtol: 6e-7, atol: 3e-7 },
    {
      code: geluGradient,
      takes: ["f"],
      gives: "f",
      f: (x) => finite(slope(g))(x!),
      immediate: i + 1,
      rtol: 2e-6,
      atol: 2e-6
    }
  ])
)
const op = (code: number, takes: string, gives: Lane, f: Op["f"], more: Partial<Op> = {}): Op => ({
  code,
  takes: [...takes] as ReadonlyArray<Lane>,
  gives,
  f,
  ...more
})
const operations: ReadonlyArray<Op> = [
  ...floatOps,
  op(40, "ii", "i", (x, y) => i32(x! + y!)),
  op(41, "ii", "i", (x, y) => i32(x! - y!)),
  op(42, "ii", "i", (x, y) => Math.imul(x!, y!)),
  op(43, "ii", "i", (x, y) => (y === 0 ? 0 : i32(Math.floor(x! / y!)))),
  op(44, "ii", "i", (x, y) => Math.max(x!, y!)),
  op(45, "ii", "i", (x, y) => Math.min(x!, y!)),
  op(46, "uu", "u", (x, y) => (y === 0 ? 0 : Math.floor(x! / y!))),
  op(47, "uu", "u", (x, y) => Math.max(x!, y!)),
  op(48, "uu", "u", (x, y) => Math.min(x!, y!)),
  op(49, "i", "i", (x) => i32(-x!)),
  op(50, "i", "i", (x) => i32(Math.abs(x!))),
  op(51, "i", "i", (x) => Math.sign(x!)),
  op(60, "ff", "b", (x, y) => bit(x! < y!)),
  op(61, "ii", "b", (x, y) => bit(x! < y!)),
  op(62, "uu", "b", (x, y) => bit(x! < y!)),
  op(63, "ff", "b", (x, y) => bit(x === y)),
  op(64, "ii", "b", (x, y) => bit(x === y)),
  op(65, "f", "b", (x) => bit(Number.isFinite(x!))),
  op(70, "bff", "f", (x, y, z) => (x ? y! : z!)),
  op(70, "bii", "i", (x, y, z) => (x ? y! : z!)),
  op(71, "bb", "b", (x, y) => x! & y!),
  op(72, "bb", "b", (x, y) => x! | y!),
  op(73, "b", "b", (x) => bit(!x)),
  op(80, "f", "i", (x) => saturate(-(2 ** 31), 2 ** 31 - 1)(x!)),
  op(81, "f", "u", (x) => saturate(0, 2 ** 32 - 1)(x!)),
  op(82, "i", "f", (x) => f32(x!)),
  op(83, "u", "f", (x) => f32(x!)),
  op(84, "f", "b", (x) => bit(x !== 0)),
  op(85, "i", "b", (x) => bit(x !== 0)),
  op(86, "f", "f", (x) => round(BF16, x!)),
  op(87, "f", "f", (x) => round(F16, x!)),
  op(88, "f", "i", (x) => saturate(0, 255)(x!)),
  op(89, "i", "i", (x) => x! & 255)
]

const types: Record<Lane, ReadonlyArray<number>> = { f: floatTypes, i: [I32, I32, U8], u: [U32], b: [BOOL, U8] }
const special = [
  0,
  -0,
  1,
  -1,
  0.5,
  Infinity,
  -Infinity,
  Number.NaN,
  1e-40,
  -3e-42,
  3e38,
  -3e38,
  88.8,
  -87.5,
  -103.5,
  2147483648,
  -2147483904,
  4294967296,
  255.5,
  65519,
  65520,
  1.00390625,
  1.01171875
]
const value = (random: Random, lane: Lane, type: number): number => {
  if (lane === "b") return random.int(0, 1)
  if (type === U8) return random.int(0, 255)
  if (lane === "i")
    return random.chance(0.2)
      ? random.pick([0, 1, -1, 2 ** 31 - 1, -(2 ** 31)])
      : random.chance(0.5)
        ? random.int(-9, 9)
        : i32(random.int(-(2 ** 31), 2 ** 31 - 1))
  if (lane === "u") return random.chance(0.2) ? random.pick([0, 1, 2 ** 31, 2 ** 32 - 1]) : random.int(0, 2 ** 32 - 1)
  return random.chance(0.1) ? random.pick(special) : random.normal() * 10 ** random.int(-3, 1)
}

const shape = (random: Random): ReadonlyArray<number> => {
  const rank = random.int(0, 4)
  return Array.from({ length: rank }, (_, i) => random.size(rank === 1 ? 900 : rank === 2 ? 40 : i === 0 ? 12 : 7))
}

property(
  "each operation",
  (library, random) => {
    const sizes = shape(random)
    for (const operation of operations) {
      const scene = new Scene(library)
      const inputs = operation.takes.map((lane) => {
        const type = random.pick(types[lane])
        const { strides, count } = random.chance(0.15)
          ? { strides: sizes.map(() => 0), count: sizes.includes(0) ? 0 : 1 }
          : layout(random, sizes)
        return { strides, operand: scene.operand(type, count, () => value(random, lane, type)) }
      })
      const type = random.pick(types[operation.gives])
      const place = layout(random, sizes)
      const output = scene.operand(type, place.count)
      const n = inputs.length
      const immediate = operation.immediate ?? 0
      const registers = [0, 1, 2].map((i) => (i < n ? i : 0))
      scene.add(
        1,
        [sizes.length, n, 1, 2, ...sizes],
        inputs.flatMap((x) => [...x.operand.words, ...x.strides]),
        [...output.words, ...place.strides],
        [operation.code, random.chance(0.5) ? n : 0, ...registers, immediate],
        [0, 0, 0, 0, 0, 0]
      )
      // The store names the register the operation wrote.
      scene.plan[scene.plan.length - 4] = scene.plan[scene.plan.length - 11]!
      if (scene.run(random.int(1, 2)) !== 0) throw new Error(`operation ${operation.code}: not run`)
      for (const index of indices(sizes)) {
        const x = inputs.map((input) => input.operand.get(at(index, input.strides)))
        let expected = operation.f(...x)
        const actual = output.get(at(index, place.strides))
        const isGelu = operation.code === gelu || operation.code === geluGradient
        if (operation.code === multiplyAdd && Math.abs(x[0]! * x[1]!) > 3e38) continue // with two roundings the product overflows
        if (isGelu && !Number.isFinite(x[0]!) && !Number.isNaN(x[0]!)) continue
        if (isGelu && Math.abs(x[0]!) > 100) continue // the difference quotient of the reference is rounding error there
        if (operation.gives === "f") expected = round(type, expected)
        else if (type === U8 || type === BOOL) expected &= 255
        const rtol = (operation.rtol ?? 1.2e-7) + 2 * (operation.rtol ? precision(type) : 0)
        const atol = (operation.atol ?? 0) + (type === F16 && operation.rtol ? 6e-8 : 0)
        expectClose(
          `operation ${operation.code} of ${x.join(" ")}, type ${type}, sizes ${sizes.join("x")}`,
          actual,
          expected,
          rtol,
          atol
        )
      }
    }
  },
  100
)

property(
  "programs",
  (library, random) => {
    const sizes = shape(random)
    const scene = new Scene(library)
    const inputs = Array.from({ length: random.int(1, 4) }, () => {
      const broadcast = sizes.map((n) => (random.chance(0.2) ? 1 : n))
      const { strides, count } = layout(random, broadcast)
      return {
        strides: strides.map((s, i) => (broadcast[i] === sizes[i] ? s : 0)),
        operand: scene.operand(random.pick(floatTypes), sizes.includes(0) ? 0 : count, () => random.normal())
      }
    })
    const inPlace =
      random.chance(0.3) && inputs[0]!.operand.count > 0 && !inputs[0]!.strides.some((s, i) => s === 0 && sizes[i]! > 1)
    const before = inputs.map(({ operand }) => Array.from({ length: operand.count }, (_, i) => operand.get(i)))
    const outputs = [0, 1].map((i) => {
      if (i === 0 && inPlace) return inputs[0]!
      const { strides, count } = layout(random, sizes)
      return { strides, operand: scene.operand(random.pick(floatTypes), count) }
    })
    // Sums, differences, maxima and an index: exact enough to compare through several instructions and stores.
    const code: Array<ReadonlyArray<number | bigint>> = []
    const steps: Array<(registers: Array<number>, index: ReadonlyArray<number>) => void> = []
    let registers = inputs.length
    const stored: Array<(registers: Array<number>) => number> = []
    const store = (output: number) => {
      const from = random.int(0, registers - 1)
      code.push([0, 0, from, 0, 0, output])
      const version = output
      steps.push((r) => {
        stored[version] = (
          (x) => () =>
            x
        )(r[from]!)
      })
    }
    for (let i = random.int(1, 6); i > 0; i--) {
      const kind = random.int(0, 4)
      const dst = random.chance(0.3) ? random.int(0, registers - 1) : registers
      const a = random.int(0, registers - 1)
      const b = random.int(0, registers - 1)
      if (kind === 3) {
        const constant = f32(random.normal())
        code.push([1, dst, 0, 0, 0, doubleWord(constant)])
        steps.push((r) => void (r[dst] = constant))
      } else if (kind === 4 && sizes.length > 0) {
        const axis = random.int(0, sizes.length - 1)
        const step = random.int(-3, 3)
        code.push([3, dst, axis, 0, 0, (BigInt(step) << 32n) + 5n], [82, dst, dst, 0, 0, 0])
        steps.push((r, index) => void (r[dst] = 5 + step * index[axis]!))
      } else {
        const f = [(x: number, y: number) => x + y, (x: number, y: number) => x - y, Math.max][kind % 3]!
        code.push([[10, 11, 14][kind % 3]!, dst, a, b, 0, 0])
        steps.push((r) => void (r[dst] = f32(f(r[a]!, r[b]!))))
      }
      if (dst === registers) registers++
      if (random.chance(0.2)) store(1)
    }
    store(0)
    store(1)
    scene.add(
      1,
      [sizes.length, inputs.length, 2, code.length, ...sizes],
      [...inputs, ...outputs].flatMap((x) => [...x.operand.words, ...x.strides]),
      ...code.flat()
    )
    if (scene.run(random.int(1, 2)) !== 0) throw new Error("not run")
    for (const index of indices(sizes)) {
      const r = inputs.map((input, i) => before[i]![at(index, input.strides)]!)
      for (const step of steps) step(r, index)
      outputs.forEach((output, o) => {
        const type = output.operand.type
        expectClose(
          `output ${o} at ${index.join(" ")} of ${sizes.join("x")}`,
          output.operand.get(at(index, output.strides)),
          round(type, stored[o]!(r)),
          2 * precision(type),
          1e-4
        )
      })
    }
  },
  200
)

property(
  "copies",
  (library, random) => {
    const sizes = random.chance(0.3) ? [random.int(1, 60), random.int(1, 60)] : shape(random)
    const type = random.pick([F32, BF16, U8, I32, BOOL])
    const scene = new Scene(library)
    const from = layout(random, sizes)
    const to = layout(random, sizes)
    const input = scene.operand(type, from.count, () => random.int(0, type === BOOL ? 1 : 100))
    const output = scene.operand(type, to.count)
    scene.add(1, [
      sizes.length,
      1,
      1,
      1,
      ...sizes,
      ...input.words,
      ...from.strides,
      ...output.words,
      ...to.strides,
      0,
      0,
      0,
      0,
      0,
      0
    ])
    if (scene.run() !== 0) throw new Error("not run")
    for (const index of indices(sizes))
      expectClose(
        `${index.join(" ")} of ${sizes.join("x")}`,
        output.get(at(index, to.strides)),
        input.get(at(index, from.strides)),
        0,
        0
      )
  },
  200
)

compileFirst(hostIsas)
it.each(hostIsas)("threefry has its known answers on %s", async (isa) => {
  const library = await open(isa)
  const cases = [
    [0, 0, 0, 0, 0x6b200159],
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x1cb996fc],
    [0x13198a2e, 0x03707344, 0x243f6a88, 0x85a308d3, 0xc4923a9c]
  ]
  const scene = new Scene(library)
  const columns = [0, 1, 2, 3].map((i) => scene.operand(U32, 3, (n) => cases[n]![i]!))
  const output = scene.operand(U32, 3)
  scene.add(
    1,
    [1, 4, 1, 2, 3],
    columns.flatMap((c) => [...c.words, 1]),
    [...output.words, 1],
    [90, 4, 0, 1, 2, 3],
    [0, 0, 4, 0, 0, 0]
  )
  expect(scene.run()).toBe(0)
  expect([0, 1, 2].map((i) => output.get(i))).toEqual(cases.map((c) => c[4]))
})
