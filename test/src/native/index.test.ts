import { property } from "./cases.ts"
import {
  at,
  expectClose,
  extent,
  F32,
  floatTypes,
  I32,
  indices,
  layout,
  precision,
  round,
  Scene,
  BF16
} from "./harness.ts"

property(
  "gathers",
  (library, random) => {
    const sizes = Array.from({ length: random.int(0, 3) }, () => random.size(6))
    const width = random.size(40)
    const rows = random.int(0, 6)
    const first = random.int(-1, 2)
    const scene = new Scene(library)
    // A table per index of the first axis, perhaps; the ids in any layout.
    const ids = layout(random, sizes)
    const tableSizes = [rows, ...sizes.map((n, i) => (i === 0 && random.chance(0.5) ? n : 1)), width]
    const table = layout(random, tableSizes, tableSizes.length - 1)
    const tableStrides = sizes.map((_, i) => (tableSizes[i + 1] === 1 ? 0 : table.strides[i + 1]!))
    const out = layout(random, [...sizes, width], sizes.length)
    const whole = random.chance(0.2)
    const type = () => (whole ? I32 : random.pick(floatTypes))
    const x = scene.operand(type(), table.count, () => random.int(-99, 99))
    const id = scene.operand(I32, ids.count, () => random.int(-2, 8))
    const y = scene.operand(type(), out.count)
    scene.add(11, [
      sizes.length,
      ...sizes,
      width,
      ...x.words,
      ...tableStrides,
      table.strides[0]!,
      ...id.words,
      ...ids.strides,
      first,
      rows,
      ...y.words,
      ...out.strides.slice(0, -1)
    ])
    if (scene.run() !== 0) throw new Error("not run")
    for (const index of indices(sizes)) {
      const row = id.get(at(index, ids.strides)) - first
      for (let j = 0; j < width; j++) {
        const expected = row < 0 || row >= rows ? 0 : x.get(at(index, tableStrides) + row * table.strides[0]! + j)
        expectClose(
          `gather ${sizes.join("x")} width ${width}`,
          y.get(at(index, out.strides) + j),
          round(y.type, expected),
          0,
          0
        )
      }
    }
  },
  200
)

property(
  "scattered sums",
  (library, random) => {
    const sizes = Array.from({ length: random.int(0, 3) }, () => random.size(6))
    const width = random.chance(0.1) ? random.int(64, 200) : random.size(40)
    const rows = random.int(1, 6)
    const first = random.int(-1, 2)
    const scene = new Scene(library)
    const ids = layout(random, sizes)
    const from = layout(random, [...sizes, width], sizes.length)
    const outStrides = sizes.map(() => (random.chance(0.3) ? width : 0))
    const outIdStride = width + random.int(0, 2)
    const outZero =
      width === 0 || sizes.includes(0)
        ? rows * outIdStride
        : (rows - 1) * outIdStride + width - 1 + extent(sizes, outStrides)
    const whole = random.chance(0.2)
    const x = scene.operand(whole ? I32 : random.pick(floatTypes), from.count, () =>
      whole ? random.int(-9, 9) : random.normal()
    )
    const id = scene.operand(I32, ids.count, () => random.int(-2, 8))
    const y = scene.operand(whole ? I32 : random.pick([F32, F32, BF16]), outZero)
    scene.add(12, [
      sizes.length,
      ...sizes,
      width,
      ...x.words,
      ...from.strides.slice(0, -1),
      ...id.words,
      ...ids.strides,
      first,
      rows,
      ...y.words,
      ...outStrides,
      outIdStride,
      outZero
    ])
    if (scene.run() !== 0) throw new Error("not run")
    const expected = new Float64Array(outZero)
    for (const index of indices(sizes)) {
      const row = id.get(at(index, ids.strides)) - first
      if (row >= 0 && row < rows)
        for (let j = 0; j < width; j++)
          expected[at(index, outStrides) + row * outIdStride + j]! += x.get(at(index, from.strides) + j)
    }
    for (let i = 0; i < outZero; i++)
      expectClose("scatter", y.get(i), expected[i]!, precision(y.type), whole ? 0 : 1e-5)
  },
  200
)

property(
  "bytes",
  (library, random) => {
    const bytes = random.size(3000)
    const scene = new Scene(library)
    const x = scene.operand(5, bytes, () => random.int(0, 255))
    const y = scene.operand(5, bytes)
    const z = scene.operand(5, bytes)
    scene.add(13, [bytes, ...y.words, ...x.words]).add(14, [bytes, ...z.words])
    if (scene.run() !== 0) throw new Error("not run")
    for (let i = 0; i < bytes; i++) {
      expectClose("copy", y.get(i), x.get(i), 0, 0)
      expectClose("zero", z.get(i), 0, 0, 0)
    }
  },
  30
)
