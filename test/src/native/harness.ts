// Drives the native library by hand-made plans: builds it for one instruction set, places every operand right before an inaccessible page, and
// reads and writes elements of any type as numbers.
import { readFileSync } from "node:fs"
import * as NativeLibrary from "@tessera/cpu/NativeLibrary"
import * as Effect from "effect/Effect"
import { createRequire } from "node:module"
import { join } from "node:path"

const root = join(import.meta.dirname, "../../..")
const sources = join(root, "packages/cpu/native")
// The backend's own dependency; of its interface, what is used here.
interface Koffi {
  readonly load: (path: string) => { readonly func: (prototype: string) => never }
  readonly address: (pointer: unknown) => bigint
  readonly view: (pointer: unknown, bytes: number) => ArrayBuffer
}
const koffi = createRequire(join(root, "packages/cpu/package.json"))("koffi") as Koffi

export const F32 = 0
export const BF16 = 1
export const F16 = 2
export const I32 = 3
export const U32 = 4
export const U8 = 5
export const BOOL = 6
export const floatTypes = [F32, BF16, F16]

interface Isa {
  readonly flags: ReadonlyArray<string>
  readonly needs: ReadonlyArray<string>
}
const isas = JSON.parse(readFileSync(join(sources, "isa.json"), "utf8")) as Record<string, Isa>

/** The instruction sets this machine can run, best first. */
export const hostIsas: ReadonlyArray<string> = (() => {
  const features = new Set(
    /^(?:flags|Features)\s*:(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1]?.trim().split(/\s+/)
  )
  return Object.keys(isas).filter((name) => isas[name]!.needs.every((feature) => features.has(feature)))
})()

/** The package's own builder, so that tests and backends share one cache and one compilation. */
const compile = (isa: string): Promise<string> => Effect.runPromise(NativeLibrary.build({ isa }))

export interface Library {
  readonly isa: string
  readonly run: (
    pool: unknown,
    plan: BigInt64Array,
    words: number,
    bindings: BigUint64Array,
    count: number,
    cancel: Int32Array | null,
    profile: Float64Array | null,
    profileCount: number,
    error: BigInt64Array | null,
    hooks: null
  ) => number
  readonly abiVersion: () => number
  readonly name: () => string
  readonly poolCreate: (threads: number) => unknown
  readonly poolDestroy: (pool: unknown) => void
  readonly memoryCreate: (bytes: number, kind: number) => unknown
  readonly memoryDestroy: (memory: unknown, bytes: number, kind: number) => void
  readonly memoryLive: () => number
  readonly memoryPeak: () => number
  readonly memoryResetPeak: () => void
  /** A pool of so many threads, made once. */
  readonly pool: (threads: number) => unknown
  readonly slot: (index: number, large: boolean) => Slot
}

interface Slot {
  readonly address: bigint
  readonly view: DataView
  readonly bytes: number
}

const slotBytes = 1 << 18
const largeBytes = 1 << 23

export const view = (memory: unknown, bytes: number): DataView => new DataView(koffi.view(memory, bytes))

/** Compiles (once per source) and loads the library for one instruction set. */
export const open = async (isa: string): Promise<Library> => {
  const library = koffi.load(await compile(isa))
  const pools = new Map<number, unknown>()
  const slots = new Map<string, Slot>()
  const memoryCreate: Library["memoryCreate"] = library.func("void *ts_memory_create(uint64_t bytes, int32_t kind)")
  const poolCreate: Library["poolCreate"] = library.func("void *ts_pool_create(int32_t threads)")
  return {
    isa,
    run: library.func(
      "int32_t ts_run(void *pool, const int64_t *plan, uint64_t words, const uint64_t *bindings, uint64_t bindingCount, const int32_t *cancel, double *profile, uint64_t profileCount, int64_t *error, const void *hooks)"
    ),
    abiVersion: library.func("int32_t ts_abi_version(void)"),
    name: library.func("const char *ts_isa(void)"),
    poolCreate,
    poolDestroy: library.func("void ts_pool_destroy(void *pool)"),
    memoryCreate,
    memoryDestroy: library.func("void ts_memory_destroy(void *memory, uint64_t bytes, int32_t kind)"),
    memoryLive: library.func("uint64_t ts_memory_live(void)"),
    memoryPeak: library.func("uint64_t ts_memory_peak(void)"),
    memoryResetPeak: library.func("void ts_memory_reset_peak(void)"),
    pool: (threads) => {
      if (!pools.has(threads)) pools.set(threads, poolCreate(threads))
      return pools.get(threads)
    },
    slot: (index, large) => {
      const name = `${index} ${large}`
      const bytes = large ? largeBytes : slotBytes
      if (!slots.has(name)) {
        const memory: unknown = memoryCreate(bytes, large ? 0 : 3)
        slots.set(name, { address: koffi.address(memory), view: view(memory, bytes), bytes })
      }
      return slots.get(name)!
    }
  }
}

const bits = new DataView(new ArrayBuffer(8))
export const doubleWord = (x: number): bigint => {
  bits.setFloat64(0, x)
  return bits.getBigInt64(0)
}
const floatBits = (x: number): number => {
  bits.setFloat32(0, x)
  return bits.getUint32(0)
}
const bitsFloat = (u: number): number => {
  bits.setUint32(0, u)
  return bits.getFloat32(0)
}

const halfBits = (x: number): number => {
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0
  const a = Math.abs(x)
  if (Number.isNaN(x)) return 0x7e00
  if (a >= 65520) return sign | 0x7c00
  const exponent = Math.max(-14, a === 0 ? -14 : Math.floor(Math.log2(a)))
  const scaled = a / 2 ** (exponent - 10)
  const floor = Math.floor(scaled)
  const rest = scaled - floor
  const q = floor + (rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? 1 : 0)
  return sign | (exponent === -14 && q < 1024 ? q : (exponent + 15) * 1024 + q - 1024)
}
const halfValue = (h: number): number => {
  const sign = h & 0x8000 ? -1 : 1
  const exponent = (h >> 10) & 31
  const mantissa = h & 1023
  if (exponent === 31) return mantissa ? Number.NaN : sign * Infinity
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25))
}
const brainBits = (x: number): number => {
  const u = floatBits(x)
  if (Number.isNaN(x)) return 0x7fc0
  return ((u + 0x7fff + ((u >>> 16) & 1)) >>> 16) & 0xffff
}

const sizes = [4, 2, 2, 4, 4, 1, 1]

/** The value an element of this type holds after storing x. */
export const round = (type: number, x: number): number =>
  type === F32
    ? Math.fround(x)
    : type === BF16
      ? bitsFloat(brainBits(x) << 16)
      : type === F16
        ? halfValue(halfBits(Math.fround(x)))
        : x
/** The relative error that storing in this type adds. */
export const precision = (type: number): number => (type === BF16 ? 2 ** -8 : type === F16 ? 2 ** -11 : 0)

export class Operand {
  readonly type: number
  readonly count: number
  readonly binding: number
  readonly offset: number
  readonly slot: Slot
  constructor(slot: Slot, binding: number, type: number, count: number) {
    this.slot = slot
    this.binding = binding
    this.type = type
    this.count = count
    // The last byte of a small operand is the last accessible one.
    this.offset = slot.bytes - count * sizes[type]!
    if (this.offset < 128) throw new Error(`operand of ${count} elements does not fit`)
    for (let i = this.offset - 128; i < slot.bytes; i++) slot.view.setUint8(i, 0xa5)
  }
  get words(): ReadonlyArray<number> {
    return [this.binding, this.offset, this.type, 0]
  }
  get(i: number): number {
    const { view } = this.slot
    const at = this.offset + i * sizes[this.type]!
    switch (this.type) {
      case F32:
        return view.getFloat32(at, true)
      case BF16:
        return bitsFloat(view.getUint16(at, true) << 16)
      case F16:
        return halfValue(view.getUint16(at, true))
      case I32:
        return view.getInt32(at, true)
      case U32:
        return view.getUint32(at, true)
      default:
        return view.getUint8(at)
    }
  }
  set(i: number, x: number): void {
    const { view } = this.slot
    const at = this.offset + i * sizes[this.type]!
    switch (this.type) {
      case F32:
        return view.setFloat32(at, x, true)
      case BF16:
        return view.setUint16(at, brainBits(x), true)
      case F16:
        return view.setUint16(at, halfBits(Math.fround(x)), true)
      case I32:
        return view.setInt32(at, x, true)
      case U32:
        return view.setUint32(at, x, true)
      default:
        return view.setUint8(at, x)
    }
  }
  /** What the memory holds, as text, to compare two runs bit by bit. */
  snapshot(): string {
    return Buffer.from(this.slot.view.buffer, this.offset, this.slot.bytes - this.offset).toString("latin1")
  }
  untouchedBefore(): boolean {
    for (let i = this.offset - 128; i < this.offset; i++) if (this.slot.view.getUint8(i) !== 0xa5) return false
    return true
  }
}

/** One plan and its operands. */
export class Scene {
  readonly library: Library
  readonly plan: Array<bigint> = []
  readonly operands: Array<Operand> = []
  readonly large: boolean
  constructor(library: Library, large = false) {
    this.library = library
    this.large = large
  }
  operand(type: number, count: number, value?: (i: number) => number): Operand {
    const slot = this.library.slot(this.operands.length, this.large)
    const operand = new Operand(slot, this.operands.length, type, count)
    this.operands.push(operand)
    if (value) for (let i = 0; i < count; i++) operand.set(i, value(i))
    return operand
  }
  /** Words; a bigint goes in as it is (see `doubleWord`). */
  add(opcode: number, ...words: ReadonlyArray<number | bigint | ReadonlyArray<number>>): this {
    const flat = words.flat().map((w) => BigInt(w))
    this.plan.push(BigInt(opcode), BigInt(flat.length + 3), 7n, ...flat)
    return this
  }
  run(threads = 2): number {
    const bindings = BigUint64Array.from(this.operands.map((o) => o.slot.address))
    const status = this.library.run(
      this.library.pool(threads),
      BigInt64Array.from(this.plan),
      this.plan.length,
      bindings,
      bindings.length,
      null,
      null,
      0,
      null,
      null
    )
    for (const o of this.operands) if (!o.untouchedBefore()) throw new Error(`written before operand ${o.binding}`)
    return status
  }
}

/** The operand that no flag uses. */
export const none: ReadonlyArray<number> = [-1, 0, 0, 0]

/** A small deterministic generator (mulberry32), so that a case is a seed. */
export const generator = (seed: number): (() => number) => {
  let a = seed | 0
  return () => {
    a = (a + 0x6d2b79f5) | 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}
export class Random {
  readonly next: () => number
  constructor(seed: number) {
    this.next = generator(seed)
  }
  int(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low + 1))
  }
  pick<T>(list: ReadonlyArray<T>): T {
    return list[this.int(0, list.length - 1)]!
  }
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.next())) * Math.cos(2 * Math.PI * this.next())
  }
  chance(p: number): boolean {
    return this.next() < p
  }
  /** Mostly small, with the awkward ones in: 0, 1, one vector, one more. */
  size(most: number): number {
    return Math.min(most, this.chance(0.3) ? this.pick([0, 1, 2, 8, 15, 16, 17, 33]) : this.int(1, most))
  }
}

export interface Layout {
  readonly strides: ReadonlyArray<number>
  readonly count: number
}
/** Strides of a dense array with its axes in some order and perhaps a gap between rows. `inner`: the axis that must be contiguous. */
export const layout = (random: Random, sizes: ReadonlyArray<number>, inner?: number): Layout => {
  const order = sizes.map((_, i) => i)
  for (let i = order.length - 1; i > 0; i--) {
    const j = random.int(0, i)
    ;[order[i], order[j]] = [order[j]!, order[i]!]
  }
  if (inner !== undefined) order.push(...order.splice(order.indexOf(inner), 1))
  const strides = sizes.map(() => 0)
  let stride = 1
  for (const axis of order.reverse()) {
    strides[axis] = stride
    stride = stride * Math.max(1, sizes[axis]!) + (random.chance(0.2) ? random.int(0, 3) : 0)
  }
  return { strides, count: extent(sizes, strides) }
}
export const extent = (sizes: ReadonlyArray<number>, strides: ReadonlyArray<number>): number =>
  sizes.includes(0) ? 0 : sizes.reduce((n, size, i) => n + (size - 1) * strides[i]!, 1)

/** Every index of a shape, last axis fastest. */
export const indices = function* (sizes: ReadonlyArray<number>): Generator<ReadonlyArray<number>> {
  const total = sizes.reduce((a, b) => a * b, 1)
  for (let n = 0; n < total; n++) {
    const index: Array<number> = []
    let rest = n
    for (let i = sizes.length - 1; i >= 0; i--) {
      index[i] = rest % sizes[i]!
      rest = Math.floor(rest / sizes[i]!)
    }
    yield index
  }
}
export const at = (index: ReadonlyArray<number>, strides: ReadonlyArray<number>): number =>
  index.reduce((n, x, i) => n + x * strides[i]!, 0)

export const close = (actual: number, expected: number, rtol: number, atol: number): boolean =>
  Object.is(actual, expected) ||
  actual === expected ||
  (Number.isNaN(actual) && Number.isNaN(expected)) ||
  Math.abs(actual - expected) <= atol + rtol * Math.abs(expected)

export const expectClose = (what: string, actual: number, expected: number, rtol: number, atol: number): void => {
  if (!close(actual, expected, rtol, atol)) throw new Error(`${what}: ${actual} instead of ${expected}`)
}
