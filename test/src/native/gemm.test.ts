import { property } from "./cases.ts"
import { erf } from "./special.ts"
import {
  at,
  BF16,
  doubleWord,
  expectClose,
  extent,
  floatTypes,
  indices,
  none,
  precision,
  round,
  Scene,
  type Library,
  type Operand,
  type Random
} from "./harness.ts"

const activate = [
  (x: number) => x,
  (x: number) => (x / 2) * (1 + erf(x / Math.SQRT2)),
  (x: number) => (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  (x: number) => x / (1 + Math.exp(-1.702 * x)),
  (x: number) => Math.max(x, 0)
]

interface Shape {
  readonly batch: ReadonlyArray<number>
  readonly rows: number
  readonly k: ReadonlyArray<number>
  readonly columns: ReadonlyArray<number>
}

const check = (library: Library, random: Random, shape: Shape): void => {
  const { batch, rows, k, columns } = shape
  const scene = new Scene(library)
  const transposedC = random.chance(0.25)
  const flags = transposedC || random.chance(0.4) ? 0 : random.int(0, 7)
  const products = random.int(0, 1)
  const accumulate = random.int(0, 1)
  const activation = random.chance(0.5) ? 0 : random.int(0, 4)
  const alpha = random.pick([1, 1, 0.5, -2])
  const rounded = (x: number) => (products ? round(BF16, x) : x)
  const normal = () => random.normal()

  // A matrix with one contiguous axis, either of the two, behind batch strides that may be 0.
  const matrix = (m: number, n: number, value: () => number, batched: boolean, contiguous?: "row" | "column") => {
    const byColumn = contiguous ? contiguous === "column" : random.chance(0.5)
    const lead = (byColumn ? m : n) + (random.chance(0.3) ? random.int(0, 3) : 0)
    const strides = byColumn ? [1, lead] : [lead, 1]
    let size = extent([m, n], strides)
    const batchStrides = batch.map((b) => {
      if (!batched && random.chance(0.3)) return 0
      const stride = size
      size *= Math.max(1, b)
      return stride
    })
    const type = random.pick(floatTypes)
    const operand = scene.operand(type, size, value)
    const offset = (index: ReadonlyArray<number>) => at(index, batchStrides)
    return { operand, strides, batchStrides, offset, words: [...operand.words, ...strides, ...batchStrides] }
  }

  const a = k.map((n) => matrix(rows, n, normal, false))
  const b = k.map((n) => columns.map((m) => matrix(n, m, normal, false)))
  const c = columns.map((n) => matrix(rows, n, normal, true, transposedC ? "column" : "row"))
  const beside = (n: number, value?: () => number) => {
    const stride = n + random.int(0, 2)
    const batches = batch.reduce((x, y) => x * y, 1)
    const operand = scene.operand(
      random.pick(floatTypes),
      batches * rows * n === 0 ? 0 : batches * rows * stride,
      value
    )
    return { operand, stride }
  }
  const aux = columns.map((n) => (flags & 2 ? beside(n) : undefined))
  const residual = columns.map((n) => (flags & 4 ? beside(n, normal) : undefined))
  const total = columns.reduce((x, y) => x + y, 0)
  const biasStride = random.int(1, 2)
  const bias: Operand | undefined =
    flags & 1
      ? scene.operand(random.pick(floatTypes), total === 0 ? 0 : (total - 1) * biasStride + 1, normal)
      : undefined
  const before = c.map((x) => Array.from({ length: x.operand.count }, (_, i) => x.operand.get(i)))
  const side = (x: { operand: Operand; stride: number } | undefined) =>
    x ? [...x.operand.words, x.stride] : [...none, 0]

  scene.add(
    4,
    [batch.length, ...batch, rows, k.length, columns.length, products, accumulate, activation],
    doubleWord(alpha),
    [
      flags,
      ...(bias ? bias.words : none),
      biasStride,
      ...a.flatMap((x, s) => [k[s]!, ...x.words]),
      ...b.flatMap((list) => list.flatMap((x) => x.words)),
      ...c.flatMap((x, n) => [columns[n]!, ...x.words, ...side(aux[n]), ...side(residual[n])])
    ]
  )
  const status = scene.run(random.int(1, 2))
  if (status !== 0) throw new Error(`status ${status}`)

  let firstColumn = 0
  columns.forEach((width, n) => {
    let entry = 0
    for (const index of indices(batch)) {
      for (let i = 0; i < rows; i++)
        for (let j = 0; j < width; j++) {
          let sum = 0
          let size = 0
          k.forEach((length, s) => {
            const left = a[s]!
            const right = b[s]![n]!
            for (let q = 0; q < length; q++) {
              const p =
                rounded(left.operand.get(left.offset(index) + at([i, q], left.strides))) *
                rounded(right.operand.get(right.offset(index) + at([q, j], right.strides)))
              sum += p
              size += Math.abs(p)
            }
          })
          let x = alpha * sum + (bias ? bias.get((firstColumn + j) * biasStride) : 0)
          const tolerance = 2e-6 * (1 + Math.abs(alpha) * size)
          const beyond = (x: { operand: Operand; stride: number }) => (entry * rows + i) * x.stride + j
          const kept = aux[n]
          if (kept)
            expectClose(
              `aux ${n} ${i} ${j}`,
              kept.operand.get(beyond(kept)),
              x,
              precision(kept.operand.type),
              tolerance
            )
          x = activate[activation]!(x)
          const added = residual[n]
          if (added) x += added.operand.get(beyond(added))
          const to = c[n]!
          const place = to.offset(index) + at([i, j], to.strides)
          if (accumulate) x += before[n]![place]!
          expectClose(
            `C ${n} [${index}] ${i} ${j} of ${JSON.stringify({ ...shape, flags, activation, accumulate, products })}`,
            to.operand.get(place),
            x,
            precision(to.operand.type),
            tolerance + 1e-6 * Math.abs(x)
          )
        }
      entry++
    }
    firstColumn += width
  })
}

property(
  "small products",
  (library, random) => {
    const segments = random.chance(0.6) ? 1 : random.int(0, 3)
    const results = random.chance(0.6) ? 1 : random.int(1, 3)
    check(library, random, {
      batch: Array.from({ length: random.chance(0.6) ? 0 : random.int(1, 3) }, () => random.int(1, 3)),
      rows: random.size(20),
      k: Array.from({ length: segments }, () => random.size(40)),
      columns: Array.from({ length: results }, () => random.size(60))
    })
  },
  300
)

property(
  "long sums",
  (library, random) => {
    check(library, random, {
      batch: [],
      rows: random.int(1, 5),
      k: [random.int(700, 5000)],
      columns: [random.int(1, 4)]
    })
  },
  30
)

property(
  "medium products",
  (library, random) => {
    check(library, random, {
      batch: [],
      rows: random.int(60, 110),
      k: [random.int(60, 110)],
      columns: [random.int(60, 110)]
    })
  },
  6
)
