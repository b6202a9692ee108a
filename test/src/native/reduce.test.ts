import { property } from "./cases.ts"
import { at, expectClose, extent, F32, floatTypes, I32, indices, layout, precision, Scene, U8 } from "./harness.ts"

property(
  "reductions",
  (library, random) => {
    const rank = random.int(0, 4)
    const sizes = Array.from({ length: rank }, () => random.size(rank === 1 ? 3000 : rank === 2 ? 70 : 12))
    const kind = random.int(0, 2)
    const whole = random.chance(0.2)
    const isReduced = sizes.map(() => random.chance(0.5))
    if (kind === 2) {
      if (rank === 0) return
      isReduced.fill(false)
      isReduced[random.int(0, rank - 1)] = true
      if (sizes[isReduced.indexOf(true)] === 0) return
    }
    const scene = new Scene(library)
    const from = layout(random, sizes)
    const type = whole ? random.pick([I32, U8]) : random.pick(floatTypes)
    const x = scene.operand(type, from.count, () =>
      whole ? random.int(0, 100) : random.chance(0.002) ? Number.NaN : random.normal()
    )
    const keptSizes = sizes.map((n, i) => (isReduced[i] ? 1 : n))
    const to = layout(random, keptSizes)
    const yStrides = to.strides.map((s, i) => (isReduced[i] ? 0 : s))
    const y = scene.operand(kind === 2 || whole ? I32 : random.pick(floatTypes), to.count)
    scene.add(2, [kind, rank, ...sizes, ...x.words, ...from.strides, ...y.words, ...yStrides])
    if (scene.run() !== 0) throw new Error("not run")
    const sums = new Map<number, { sum: number; size: number; max: number; best: number; n: number }>()
    for (const index of indices(keptSizes))
      sums.set(at(index, yStrides), { sum: 0, size: 0, max: whole ? -(2 ** 31) : -Infinity, best: 0, n: 0 })
    for (const index of indices(sizes)) {
      const value = x.get(at(index, from.strides))
      const entry = sums.get(at(index, yStrides))!
      entry.sum += value
      entry.size += Math.abs(value)
      if (value > entry.max || (Number.isNaN(value) && !Number.isNaN(entry.max)) || entry.n === 0) entry.best = entry.n
      entry.max = Math.max(entry.max, value)
      entry.n++
    }
    for (const [place, entry] of sums) {
      if (type === U8 && entry.n === 0 && kind === 1) continue
      const expected = kind === 0 ? entry.sum : kind === 1 ? entry.max : entry.best
      expectClose(
        `kind ${kind} of ${sizes.join("x")} over ${isReduced.join()}`,
        y.get(place),
        expected,
        kind === 2 ? 0 : precision(y.type) + 1e-7,
        kind === 0 ? 1e-6 * entry.size + 3e-8 : 3e-8
      )
    }
  },
  300
)

property("dot products", (library, random) => {
  const count = random.size(3000)
  const strides = [random.int(0, 3), random.int(1, 2)]
  const scene = new Scene(library)
  const [x, y] = strides.map((s) => scene.operand(random.pick(floatTypes), extent([count], [s]), () => random.normal()))
  const out = scene.operand(F32, 1)
  scene.add(3, [0, count, ...x!.words, strides[0]!, ...y!.words, strides[1]!, ...out.words])
  if (scene.run() !== 0) throw new Error("not run")
  let sum = 0
  for (let i = 0; i < count; i++) sum += x!.get(i * strides[0]!) * y!.get(i * strides[1]!)
  expectClose(`dot of ${count}`, out.get(0), sum, 1e-7, 1e-9)
})

property("running sums", (library, random) => {
  const sizes = Array.from({ length: random.int(1, 3) }, () => random.size(14))
  const axis = random.int(0, sizes.length - 1)
  const whole = random.chance(0.3)
  const scene = new Scene(library)
  const from = layout(random, sizes)
  const to = layout(random, sizes)
  const x = scene.operand(whole ? I32 : random.pick(floatTypes), from.count, () =>
    whole ? random.int(-50, 50) : random.normal()
  )
  const y = scene.operand(whole ? I32 : random.pick(floatTypes), to.count)
  scene.add(16, [sizes.length, ...sizes, axis, ...x.words, ...from.strides, ...y.words, ...to.strides])
  if (scene.run() !== 0) throw new Error("not run")
  for (const index of indices(sizes)) {
    let sum = 0
    for (let i = 0; i <= index[axis]!; i++) sum += x.get(at(index.with(axis, i), from.strides))
    expectClose("running sum", y.get(at(index, to.strides)), sum, precision(y.type) + 1e-7, 1e-6)
  }
})
