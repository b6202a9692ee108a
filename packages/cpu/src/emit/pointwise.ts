/** Elementwise programs to the library's register machine. */
import * as DType from "@tessera/core/DType"
import type { AnyTensor, Body, Equation } from "@tessera/core/Node"
import type * as Plan from "@tessera/core/Plan"
import { geluKinds, opcodes, vm } from "../opcodes.ts"
import type { Word } from "../Words.ts"
import { double, operand } from "../Words.ts"
import { type Emission, memoryOrder, nestOf } from "./nest.ts"

type Lane = "float" | "int" | "uint" | "bool"
const laneOf = (dtype: DType.DType): Lane =>
  DType.kindOf(dtype) === "float" ? "float" : dtype === "u32" ? "uint" : dtype === "bool" ? "bool" : "int"

/** [float, int32, uint32] variants. */
const arithmetic: Readonly<Record<string, readonly [number, number, number]>> = {
  add: [vm.ADD, vm.IADD, vm.IADD],
  sub: [vm.SUB, vm.ISUB, vm.ISUB],
  mul: [vm.MUL, vm.IMUL, vm.IMUL],
  contract: [vm.MUL, vm.IMUL, vm.IMUL],
  div: [vm.DIV, vm.IDIV, vm.UDIV],
  maximum: [vm.MAX, vm.IMAX, vm.UMAX],
  minimum: [vm.MIN, vm.IMIN, vm.UMIN],
  less: [vm.LESS_F, vm.LESS_I, vm.LESS_U],
  equal: [vm.EQUAL_F, vm.EQUAL_I, vm.EQUAL_I],
  neg: [vm.NEG, vm.INEG, vm.INEG],
  abs: [vm.ABS, vm.IABS, -1],
  sign: [vm.SIGN, vm.ISIGN, -1]
}

const simple: Readonly<Record<string, number>> = {
  exp: vm.EXP,
  expm1: vm.EXPM1,
  log: vm.LOG,
  tanh: vm.TANH,
  erf: vm.ERF,
  sqrt: vm.SQRT,
  sin: vm.SIN,
  cos: vm.COS,
  floor: vm.FLOOR,
  sigmoid: vm.SIGMOID,
  isFinite: vm.ISFINITE,
  select: vm.SELECT,
  and: vm.AND,
  or: vm.OR,
  not: vm.NOT
}

const others = new Set(["cast", "gelu", "geluBackward", "randomBits", "broadcast"])

/** Whether an equation can run inside an elementwise kernel. */
export const isPointwise = (e: Equation): boolean =>
  (e.primitive.name in arithmetic && (e.primitive.name !== "contract" || e.params.over.length === 0)) ||
  e.primitive.name in simple ||
  others.has(e.primitive.name)

/** Whether an elementwise kernel makes the value itself. */
export const isSource = (e: Equation): boolean => e.primitive.name === "constant" || e.primitive.name === "iota"

/** Results that are values of a 16-bit type whenever the operands are. */
const exact = new Set(["select", "neg", "abs", "sign", "maximum", "minimum", "floor", "broadcast", "constant"])

interface Operation {
  readonly op: number
  readonly a: number
  readonly b: number
  readonly c: number
  readonly immediate: Word
}

/** Casts: the operation, or null where the register already holds the value. */
const castOp = (from: DType.DType, to: DType.DType): number | null => {
  if (from === to) return null
  const [f, t] = [laneOf(from), laneOf(to)]
  if (t === "float") {
    if (f === "float") return to === "bf16" ? vm.ROUND_BF16 : to === "f16" ? vm.ROUND_F16 : null
    return f === "uint" ? vm.U2F : vm.I2F
  }
  if (t === "bool") return f === "float" ? vm.F2B : vm.I2B
  if (f === "float") return to === "u8" ? vm.F2U8 : to === "u32" ? vm.F2U : vm.F2I
  return to === "u8" && f !== "bool" ? vm.I2U8 : null
}

/** Emits one kernel for a body whose outputs all have the same axes. */
export const emitPointwise = (
  body: Body,
  given: ReadonlyArray<Plan.View>,
  outputs: ReadonlyArray<Plan.View>,
  emission: Emission
): void => {
  // The kernel loads all its operands: one that nothing reads may have no elements where the results have some.
  const read = new Set([...body.equations.flatMap((e) => e.inputs), ...body.outputs])
  const kept = body.inputs.filter((x) => read.has(x))
  const inputs = given.filter((_, i) => read.has(body.inputs[i]!))
  // The first output decides the order of loops, unless it is broadcast nowhere useful; inner loops run along its memory.
  const order = memoryOrder(outputs[0]!)
  const axisNames = new Set(order.map((d) => d.name))
  const wanted = inputs.map((v) => ({ ...v, dimensions: v.dimensions.filter((d) => axisNames.has(d.name)) }))
  const coordinates = body.equations.filter((e) => e.primitive.name === "iota").map((e) => e.params.axis.name as string)
  const nest = nestOf(order, [...wanted, ...outputs], new Set(coordinates))
  const registers = new Map<AnyTensor, number>()
  kept.forEach((x, i) => registers.set(x, i))
  const code: Array<Operation & { readonly dst: number }> = []
  const reads = new Set(body.equations.flatMap((e) => e.inputs))
  const lastUse = new Map<AnyTensor, number>()
  body.equations.forEach((e, k) => e.inputs.forEach((x) => lastUse.set(x, k)))
  for (const o of body.outputs) lastUse.set(o, body.equations.length)
  const free: Array<number> = []
  let next = inputs.length
  const shared = new Map<number, number>()
  const take = () => free.pop() ?? next++
  const emit = (op: number, a = 0, b = 0, c = 0, immediate: Word = 0): number => {
    const dst = take()
    code.push({ op, dst, a, b, c, immediate })
    return dst
  }
  /** A register with another name of the same value must outlive both. */
  const hold = (register: number) => shared.set(register, (shared.get(register) ?? 0) + 1)
  const release = (register: number) => {
    if (register < inputs.length) return
    const names = (shared.get(register) ?? 1) - 1
    shared.set(register, names)
    if (names === 0) free.push(register)
  }
  body.equations.forEach((e, k) => {
    const xs = e.inputs.map((x) => registers.get(x)!)
    const out = e.outputs[0]!
    const raw = operationOf(e, xs, out, nest, emit, release)
    const result = reads.has(out) ? rounded(e, raw, xs, emit, release) : raw
    registers.set(out, result)
    hold(result)
    if (!lastUse.has(out)) release(result)
    for (const x of new Set(e.inputs))
      if (lastUse.get(x) === k && registers.get(x)! >= inputs.length) release(registers.get(x)!)
  })
  const stores = body.outputs.map((o, i): Operation & { readonly dst: number } => ({
    op: vm.STORE,
    dst: 0,
    a: registers.get(o)!,
    b: 0,
    c: 0,
    immediate: i
  }))
  const all = [...code, ...stores]
  const words: ReadonlyArray<Word> = [
    nest.sizes.length,
    inputs.length,
    outputs.length,
    all.length,
    ...nest.sizes,
    ...[...wanted, ...outputs].flatMap((v, i): ReadonlyArray<Word> => [operand(v), ...nest.strides[i]!]),
    ...all.flatMap((o): ReadonlyArray<Word> => [o.op, o.dst, o.a, o.b, o.c, o.immediate])
  ]
  emission.push({ opcode: opcodes.POINTWISE, words }, inputs, outputs, true)
}

/**
 * Registers hold f32. A 16-bit result that a later operation of the kernel reads is rounded as if it had been stored; what is only stored is rounded
 * there.
 */
const rounded = (
  e: Equation,
  register: number,
  operands: ReadonlyArray<number>,
  emit: (op: number, a?: number) => number,
  release: (register: number) => void
): number => {
  const { dtype } = e.outputs[0]!.type
  if ((dtype !== "bf16" && dtype !== "f16") || exact.has(e.primitive.name)) return register
  const isRounded = e.primitive.name === "cast" && DType.kindOf(e.inputs[0]!.type.dtype) === "float"
  if (isRounded) return register
  const result = emit(dtype === "bf16" ? vm.ROUND_BF16 : vm.ROUND_F16, register)
  if (!operands.includes(register)) release(register)
  return result
}

const operationOf = (
  e: Equation,
  xs: ReadonlyArray<number>,
  out: AnyTensor,
  nest: { readonly names: ReadonlyArray<ReadonlyArray<string>>; readonly sizes: ReadonlyArray<number> },
  emit: (op: number, a?: number, b?: number, c?: number, immediate?: Word) => number,
  release: (register: number) => void
): number => {
  const { name } = e.primitive
  const p = e.params
  const from = e.inputs[0]?.type.dtype
  /** An intermediate register of this operation, free again after `use`. */
  const through = (register: number, use: (register: number) => number): number => {
    const result = use(register)
    release(register)
    return result
  }
  if (name === "constant") {
    const value = DType.store(p.dtype, p.value)
    return laneOf(p.dtype) === "float" ? emit(vm.CONST_F, 0, 0, 0, double(value)) : emit(vm.CONST_I, 0, 0, 0, value)
  }
  if (name === "iota") {
    const axis = nest.names.findIndex((n) => n.includes(p.axis.name))
    const value = axis < 0 ? emit(vm.CONST_I, 0, 0, 0, p.start) : emit(vm.IOTA, axis, 0, 0, (p.start >>> 0) + 2 ** 32)
    return DType.kindOf(p.dtype) === "float" ? through(value, (v) => emit(vm.I2F, v)) : value
  }
  if (name === "broadcast") return xs[0]!
  if (name === "cast") {
    const op = castOp(from!, p.dtype)
    return op === null ? xs[0]! : emit(op, xs[0])
  }
  if (name === "gelu") return emit(vm.GELU, xs[0], 0, 0, geluKinds[p.kind as keyof typeof geluKinds])
  if (name === "geluBackward") {
    return through(emit(vm.GELU_GRAD, xs[0], 0, 0, geluKinds[p.kind as keyof typeof geluKinds]), (g) =>
      emit(vm.MUL, g, xs[1])
    )
  }
  if (name === "randomBits") return emit(vm.THREEFRY, xs[0], xs[1], xs[2], xs[3]!)
  const variants = arithmetic[name]
  if (variants !== undefined) {
    const lane = laneOf(from!)
    const op = variants[lane === "float" ? 0 : lane === "uint" ? 2 : 1]
    if (op < 0) return name === "abs" ? xs[0]! : emit(vm.I2B, xs[0])
    const value = emit(op, xs[0], xs[1] ?? 0)
    // Bytes are computed as int32 and wrap like their storage.
    return out.type.dtype === "u8" ? through(value, (v) => emit(vm.I2U8, v)) : value
  }
  return emit(simple[name]!, xs[0], xs[1] ?? 0, xs[2] ?? 0)
}
