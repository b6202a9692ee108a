import { property } from "./cases.ts"
import {
  BF16,
  doubleWord,
  expectClose,
  F32,
  floatTypes,
  I32,
  layout,
  none,
  precision,
  type Random,
  round,
  Scene,
  type Library,
  U32
} from "./harness.ts"

const threefry = (key0: number, key1: number, counter0: number, counter1: number): number => {
  const keys = [key0, key1, key0 ^ key1 ^ 0x1bd11bda]
  let x0 = (counter0 + key0) | 0
  let x1 = (counter1 + key1) | 0
  for (let group = 0; group < 5; group++) {
    for (const r of group % 2 ? [17, 29, 16, 24] : [13, 15, 26, 6]) {
      x0 = (x0 + x1) | 0
      x1 = ((x1 << r) | (x1 >>> (32 - r))) ^ x0
    }
    x0 = (x0 + keys[(group + 1) % 3]!) | 0
    x1 = (x1 + keys[(group + 2) % 3]! + group + 1) | 0
  }
  return x0 >>> 0
}

interface Sizes {
  readonly batch: number
  readonly keyHeads: number
  readonly group: number
  readonly queries: number
  readonly keys: number
  readonly depth: number
  readonly valueDepth: number
}

const check = (library: Library, random: Random, sizes: Sizes): void => {
  const { batch, keyHeads, group, queries, keys, depth, valueDepth } = sizes
  const heads = keyHeads * group
  const scene = new Scene(library)
  const scale = 1 / Math.sqrt(Math.max(1, depth))
  const mask = random.chance(0.4) ? 0 : random.int(0, 15)
  const [firstQuery, firstKey] = mask & 8 ? [random.int(0, 3), random.int(0, 5)] : [0, 0]
  const [allQueries, allKeys] = [queries + firstQuery + 1, keys + firstKey + 2]
  const maskOffset = random.int(-2, 5)
  const low = random.int(0, 1)
  const rate = random.chance(0.7) ? 0 : 0.25
  const tolerance = low ? 4e-2 : 4e-6
  const rows = (seq: number, head: number, width: number, value?: () => number) => {
    // [batch, seq, head, width] with the strides in the order of the plan
    const { strides, count } = layout(random, [batch, seq, head, width], 3)
    const operand = scene.operand(random.pick(floatTypes), count, value)
    return {
      operand,
      at: (b: number, i: number, h: number, d: number) =>
        operand.get(b * strides[0]! + i * strides[1]! + h * strides[2]! + d),
      words: [...operand.words, strides[0]!, strides[1]!, strides[2]!]
    }
  }
  const normal = () => random.normal()
  const q = rows(queries, heads, depth, normal)
  const k = rows(keys, keyHeads, depth, normal)
  const v = rows(keys, keyHeads, valueDepth, normal)
  const out = rows(queries, heads, valueDepth)
  const lse = scene.operand(F32, batch * heads * queries)
  const querySegments = scene.operand(I32, batch * queries, () => random.int(0, 1))
  const keySegments = scene.operand(I32, batch * keys, () => random.int(0, 1))
  const lengths = scene.operand(I32, batch, () => random.int(0, keys + 1))
  const key = scene.operand(U32, 2, () => random.int(0, 2 ** 32 - 1))
  const counter = scene.operand(U32, batch, () => random.int(0, 2 ** 32 - 1))
  const queryAt = scene.operand(I32, queries, (i) => firstQuery + i)
  const keyAt = scene.operand(I32, keys, (i) => firstKey + i)
  const headAt = scene.operand(U32, heads, () => random.int(0, 50))
  const head =
    (queries > 0 || rate >= 0) &&
    ([
      [batch, heads, keyHeads, queries, keys, depth, valueDepth],
      doubleWord(scale),
      [mask, maskOffset, low],
      doubleWord(rate),
      q.words,
      k.words,
      v.words,
      out.words,
      [...lse.words, heads * queries, queries, 1],
      mask & 2 ? [...querySegments.words, queries, 1, ...keySegments.words, keys, 1] : [...none, 0, 0, ...none, 0, 0],
      mask & 4 ? [...lengths.words, 1] : [...none, 0],
      rate > 0 ? [...key.words, ...counter.words, 1] : [...none, ...none, 0],
      mask & 8 ? [...queryAt.words, ...keyAt.words] : [...none, ...none],
      [...headAt.words, 1, allQueries, allKeys]
    ] as const)
  if (!head) return
  scene.add(5, ...head)
  if (scene.run(random.int(1, 2)) !== 0) throw new Error("not run")

  const dOut = rows(queries, heads, valueDepth, normal)
  const dq = rows(queries, heads, depth)
  const dk = rows(keys, keyHeads, depth)
  const dv = rows(keys, keyHeads, valueDepth)
  scene.plan.length = 0
  scene.add(6, ...head, dOut.words, dq.words, dk.words, dv.words)
  if (scene.run(random.int(1, 2)) !== 0) throw new Error("backward not run")

  const rounded = (x: number) => (low ? round(BF16, x) : x)
  const what = JSON.stringify({ ...sizes, mask, maskOffset, low, rate })
  const sums = (n: number) => new Float64Array(n)
  const dkSum = sums(batch * keys * keyHeads * depth)
  const dvSum = sums(batch * keys * keyHeads * valueDepth)
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++) {
      const kh = Math.floor(h / group)
      for (let i = 0; i < queries; i++) {
        const sees = (j: number) =>
          (!(mask & 1) || firstKey + j <= firstQuery + i + maskOffset) &&
          (!(mask & 2) || querySegments.get(b * queries + i) === keySegments.get(b * keys + j)) &&
          (!(mask & 4) || firstKey + j < lengths.get(b))
        const scores = Array.from({ length: keys }, (_, j) => {
          if (!sees(j)) return -Infinity
          let s = 0
          for (let d = 0; d < depth; d++) s += rounded(q.at(b, i, h, d)) * rounded(k.at(b, j, kh, d))
          return s * scale
        })
        const top = Math.max(-Infinity, ...scores)
        const total = scores.reduce((s, x) => s + (x === -Infinity ? 0 : Math.exp(x - top)), 0)
        const norm = top === -Infinity ? -Infinity : top + Math.log(total)
        expectClose(`lse ${what}`, lse.get((b * heads + h) * queries + i), norm, 1e-6, 4e-6)
        const keep = scores.map((_, j) =>
          rate === 0
            ? 1
            : (threefry(
                  key.get(0),
                  key.get(1),
                  counter.get(b),
                  ((headAt.get(h) * allQueries + firstQuery + i) * allKeys + firstKey + j) >>> 0
                ) >>>
                  8) *
                  2 ** -24 >=
                rate
              ? 1 / (1 - rate)
              : 0
        )
        const p = scores.map((s) => (s === -Infinity ? 0 : Math.exp(s - norm)))
        let delta = 0
        for (let d = 0; d < valueDepth; d++) {
          let o = 0
          for (let j = 0; j < keys; j++) o += p[j]! * keep[j]! * v.at(b, j, kh, d)
          expectClose(`out ${what}`, out.at(b, i, h, d), o, precision(out.operand.type), tolerance)
          delta += out.at(b, i, h, d) * dOut.at(b, i, h, d)
        }
        const ds = p.map((x, j) => {
          let g = 0
          for (let d = 0; d < valueDepth; d++) {
            const o = dOut.at(b, i, h, d)
            g += o * v.at(b, j, kh, d)
            dvSum[((b * keys + j) * keyHeads + kh) * valueDepth + d]! += x * keep[j]! * o
          }
          return x * (g * keep[j]! - delta) * scale
        })
        for (let d = 0; d < depth; d++) {
          let g = 0
          for (let j = 0; j < keys; j++) {
            g += ds[j]! * k.at(b, j, kh, d)
            dkSum[((b * keys + j) * keyHeads + kh) * depth + d]! += ds[j]! * q.at(b, i, h, d)
          }
          expectClose(`dq ${what}`, dq.at(b, i, h, d), g, precision(dq.operand.type), 4 * tolerance)
        }
      }
    }
  for (let b = 0; b < batch; b++)
    for (let j = 0; j < keys; j++)
      for (let h = 0; h < keyHeads; h++) {
        const place = (b * keys + j) * keyHeads + h
        for (let d = 0; d < depth; d++)
          expectClose(
            `dk ${what}`,
            dk.at(b, j, h, d),
            dkSum[place * depth + d]!,
            precision(dk.operand.type),
            8 * tolerance
          )
        for (let d = 0; d < valueDepth; d++)
          expectClose(
            `dv ${what}`,
            dv.at(b, j, h, d),
            dvSum[place * valueDepth + d]!,
            precision(dv.operand.type),
            8 * tolerance
          )
      }
}

property(
  "attention",
  (library, random) => {
    check(library, random, {
      batch: random.int(1, 2),
      keyHeads: random.int(1, 2),
      group: random.int(1, 2),
      queries: random.size(20),
      keys: random.size(24),
      depth: random.int(1, 20),
      valueDepth: random.int(1, 20)
    })
  },
  120
)

property(
  "attention in blocks of rows and keys",
  (library, random) => {
    const many = random.chance(0.5)
    check(library, random, {
      batch: 1,
      keyHeads: 1,
      group: 1,
      queries: many ? 3 : 300,
      keys: many ? random.int(1025, 1600) : 270,
      depth: 3,
      valueDepth: 5
    })
  },
  4
)
