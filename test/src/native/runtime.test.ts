import { describe, expect, it } from "vitest"
import { compileFirst } from "./cases.ts"
import {
  doubleWord,
  F32,
  BF16,
  hostIsas,
  I32,
  none,
  open,
  Random,
  Scene,
  view,
  type Library,
  type Operand
} from "./harness.ts"

const best = hostIsas[0]!
compileFirst(hostIsas)

describe.each(hostIsas)("the library for %s", (isa) => {
  it("says what it is", async () => {
    const library = await open(isa)
    expect(library.name()).toBe(isa)
    expect(library.abiVersion()).toBe(1)
  })

  // Sizes above every threshold of parallel work; bits must not depend on the number of threads.
  const scenes: Record<
    string,
    (library: Library, random: Random) => { scene: Scene; results: ReadonlyArray<Operand> }
  > = {
    product: (library, random) => {
      const scene = new Scene(library, true)
      const [m, n, k] = [201, 130, 1700]
      const a = scene.operand(F32, m * k, () => random.normal())
      const b = scene.operand(BF16, n * k, () => random.normal())
      const c = scene.operand(BF16, m * n)
      scene.add(4, [0, m, 1, 1, 1, 0, 1], doubleWord(1), [
        0,
        ...none,
        0,
        k,
        ...a.words,
        k,
        1,
        ...b.words,
        1,
        k,
        n,
        ...c.words,
        n,
        1,
        ...none,
        0,
        ...none,
        0
      ])
      return { scene, results: [c] }
    },
    "long product": (library, random) => {
      const scene = new Scene(library, true)
      const [m, n, k] = [9, 10, 60000]
      const a = scene.operand(F32, m * k, () => random.normal())
      const b = scene.operand(F32, n * k, () => random.normal())
      const c = scene.operand(F32, m * n)
      scene.add(4, [0, m, 1, 1, 0, 0, 0], doubleWord(1), [
        0,
        ...none,
        0,
        k,
        ...a.words,
        1,
        m,
        ...b.words,
        n,
        1,
        n,
        ...c.words,
        n,
        1,
        ...none,
        0,
        ...none,
        0
      ])
      return { scene, results: [c] }
    },
    "batched product": (library, random) => {
      const scene = new Scene(library, true)
      const [batch, m, n, k] = [13, 60, 50, 70]
      const a = scene.operand(F32, batch * m * k, () => random.normal())
      const b = scene.operand(F32, batch * n * k, () => random.normal())
      const c = scene.operand(F32, batch * m * n)
      scene.add(4, [1, batch, m, 1, 1, 0, 0, 0], doubleWord(1), [
        0,
        ...none,
        0,
        k,
        ...a.words,
        k,
        1,
        m * k,
        ...b.words,
        n,
        1,
        n * k,
        n,
        ...c.words,
        n,
        1,
        m * n,
        ...none,
        0,
        ...none,
        0
      ])
      return { scene, results: [c] }
    },
    sums: (library, random) => {
      const scene = new Scene(library, true)
      const [rows, width] = [1500, 70]
      const x = scene.operand(F32, rows * width, () => random.normal())
      const columns = scene.operand(F32, width)
      const total = scene.operand(F32, 1)
      const dot = scene.operand(F32, 1)
      scene.add(2, [0, 2, rows, width, ...x.words, width, 1, ...columns.words, 0, 1])
      scene.add(2, [0, 2, rows, width, ...x.words, width, 1, ...total.words, 0, 0])
      scene.add(3, [0, rows * width, ...x.words, 1, ...x.words, 1, ...dot.words])
      return { scene, results: [columns, total, dot] }
    },
    pointwise: (library, random) => {
      const scene = new Scene(library, true)
      const [rows, width] = [900, 130]
      const x = scene.operand(F32, rows * width, () => random.normal())
      const bias = scene.operand(BF16, width, () => random.normal())
      const y = scene.operand(BF16, rows * width)
      const z = scene.operand(F32, rows * width)
      scene.add(
        1,
        [2, 2, 1, 3, rows, width, ...x.words, width, 1, ...bias.words, 0, 1, ...y.words, width, 1],
        [10, 2, 0, 1, 0, 0],
        [29, 2, 2, 0, 0, 1],
        [0, 0, 2, 0, 0, 0]
      )
      scene.add(1, [2, 1, 1, 1, rows, width, ...x.words, width, 1, ...z.words, 1, rows], [0, 0, 0, 0, 0, 0])
      return { scene, results: [y, z] }
    },
    norm: (library, random) => {
      const scene = new Scene(library, true)
      const [rows, width] = [900, 65]
      const count = rows * width
      const [x, dy] = [0, 1].map(() => scene.operand(F32, count, () => random.normal()))
      const gamma = scene.operand(F32, width, () => random.normal())
      const [y, dx] = [0, 1].map(() => scene.operand(F32, count, () => 0))
      const [mean, rstd] = [0, 1].map(() => scene.operand(F32, rows))
      const [dgamma, dbeta] = [0, 1].map(() => scene.operand(F32, width))
      scene.add(7, [0, rows, width], doubleWord(1e-6), [
        ...x!.words,
        width,
        ...gamma.words,
        ...gamma.words,
        ...y!.words,
        width,
        ...mean!.words,
        ...rstd!.words,
        3
      ])
      scene.add(8, [0, rows, width], doubleWord(1e-6), [
        ...x!.words,
        width,
        ...gamma.words,
        ...mean!.words,
        ...rstd!.words,
        ...dy!.words,
        width,
        ...dx!.words,
        width,
        ...dgamma!.words,
        ...dbeta!.words,
        3
      ])
      return { scene, results: [y!, dx!, dgamma!, dbeta!] }
    },
    attention: (library, random) => {
      const scene = new Scene(library, true)
      const [batch, heads, seq, depth] = [1, 3, 150, 20]
      const count = batch * heads * seq * depth
      const strides = [heads * seq * depth, depth, seq * depth]
      const [q, k, v, dOut] = [0, 1, 2, 3].map(() => scene.operand(F32, count, () => random.normal()))
      const [out, dq, dk, dv] = [0, 1, 2, 3].map(() => scene.operand(F32, count))
      const lse = scene.operand(F32, batch * heads * seq)
      const rows = (x: Operand | undefined) => [...x!.words, ...strides]
      const head = [
        [batch, heads, heads, seq, seq, depth, depth],
        doubleWord(0.2),
        [1, 0, 0],
        doubleWord(0),
        rows(q),
        rows(k),
        rows(v),
        rows(out),
        [...lse.words, heads * seq, seq, 1],
        [...none, 0, 0, ...none, 0, 0], // segments
        [...none, 0], // lengths
        [...none, ...none, 0, ...none, ...none, ...none, 0, 0, 0] // key, counter, positions, numbers of heads, counts
      ] as const
      scene.add(5, ...head).add(6, ...head, rows(dOut), rows(dq), rows(dk), rows(dv))
      return { scene, results: [out!, lse, dq!, dk!, dv!] }
    },
    table: (library, random) => {
      const scene = new Scene(library, true)
      const [count, width, rows] = [700, 130, 50]
      const x = scene.operand(F32, count * width, () => random.normal())
      const ids = scene.operand(I32, count, () => random.int(0, rows))
      const out = scene.operand(F32, rows * width)
      scene.add(12, [
        1,
        count,
        width,
        ...x.words,
        width,
        ...ids.words,
        1,
        0,
        rows,
        ...out.words,
        0,
        width,
        rows * width
      ])
      return { scene, results: [out] }
    }
  }
  it.each(Object.keys(scenes))("gives the same bits on 1, 2 and 3 threads: %s", async (name) => {
    const library = await open(isa)
    const { scene, results } = scenes[name]!(library, new Random(5))
    const runs = [1, 2, 3].map((threads) => {
      expect(scene.run(threads)).toBe(0)
      return results.map((x) => x.snapshot())
    })
    expect(runs[0]!.every((x) => x !== undefined)).toBe(true)
    expect(runs[1]!.every((x, i) => x === runs[0]![i])).toBe(true)
    expect(runs[2]!.every((x, i) => x === runs[0]![i])).toBe(true)
  })
})

const call = (
  library: Library,
  plan: ReadonlyArray<bigint>,
  more: { cancel?: Int32Array; profile?: Float64Array; error?: BigInt64Array; bindings?: BigUint64Array } = {}
) =>
  library.run(
    library.pool(2),
    BigInt64Array.from(plan),
    plan.length,
    more.bindings ?? new BigUint64Array(1),
    more.bindings?.length ?? 0,
    more.cancel ?? null,
    more.profile ?? null,
    more.profile?.length ?? 0,
    more.error ?? null,
    null
  )

it("reports unknown opcodes and malformed plans, and never crashes on them", async () => {
  const library = await open(best)
  const error = new BigInt64Array(1)
  expect(call(library, [99n, 3n, 41n], { error })).toBe(2)
  expect(error[0]).toBe(41n)
  expect(call(library, [])).toBe(0)
  for (const plan of [
    [14n],
    [14n, 2n, 0n],
    [14n, 9n, 0n],
    [14n, -1n, 0n],
    [14n, 8n, 0n, 16n, 5n, 0n, 5n, 0n],
    [14n, 8n, 0n, -4n, 0n, 0n, 0n, 0n]
  ])
    expect(call(library, plan)).toBe(2)
  // Any words behind any opcode: sizes may be huge or negative, bindings missing. Nothing may be touched, so nothing is bound.
  const random = new Random(1)
  const words = [0n, 0n, 1n, 1n, 2n, 3n, -1n, 7n, 1n << 40n, -(1n << 40n)]
  for (let i = 0; i < 20000; i++) {
    const length = random.int(0, 60)
    const body = Array.from({ length }, () => random.pick(words))
    expect([0, 2, 3]).toContain(call(library, [BigInt(random.int(0, 18)), BigInt(length + 3), 0n, ...body]))
  }
})

it("cancels between instructions, and profiles by equation", async () => {
  const library = await open(best)
  const memory = library.slot(0, false)
  const bindings = BigUint64Array.from([memory.address])
  const zero = (equation: bigint) => [14n, 8n, equation, 4096n, 0n, 0n, 5n, 0n]
  const profile = new Float64Array(3)
  expect(call(library, [...zero(2n), ...zero(0n), ...zero(9n)], { profile, bindings })).toBe(0)
  expect(profile[2]).toBeGreaterThan(0)
  expect(profile[0]).toBeGreaterThan(0)
  expect(profile[1]).toBe(0)
  expect(call(library, zero(0n), { cancel: Int32Array.from([1]), bindings })).toBe(1)
  expect(call(library, zero(0n), { cancel: Int32Array.from([0]), bindings })).toBe(0)
})

it("counts the memory it holds", async () => {
  const library = await open(best)
  const before = Number(library.memoryLive())
  library.memoryResetPeak()
  for (const kind of [0, 1, 3])
    for (const bytes of [1, 4096, 5000, 3 << 20]) {
      const memory = library.memoryCreate(bytes, kind)
      const bytesView = view(memory, bytes)
      if (kind !== 3) expect(bytesView.getUint8(bytes - 1)).toBe(0)
      bytesView.setUint8(bytes - 1, 7)
      expect(Number(library.memoryLive())).toBe(before + bytes)
      library.memoryDestroy(memory, bytes, kind)
    }
  expect(Number(library.memoryLive())).toBe(before)
  expect(Number(library.memoryPeak())).toBe(before + (3 << 20))
  library.memoryResetPeak()
  expect(Number(library.memoryPeak())).toBe(before)
  expect(library.memoryCreate(1, 9)).toBe(null)
})

it("starts and ends pools", async () => {
  const library = await open(best)
  for (const threads of [1, 2, 5]) library.poolDestroy(library.poolCreate(threads))
  expect(library.poolCreate(0)).toBe(null)
})
