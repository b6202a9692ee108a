/** Named contractions as packed matrix products. */
import * as DType from "@tessera/core/DType"
import type * as Plan from "@tessera/core/Plan"
import { opcodes, vm } from "../opcodes.ts"
import type { Word } from "../Words.ts"
import { double, operand } from "../Words.ts"
import * as Nest from "./nest.ts"

const dense = (dtype: DType.DType) => dtype === "f32" || dtype === "bf16" || dtype === "f16"

/** Row and column stride of a matrix operand, columns being `columns`; null where memory does not walk them evenly. */
const matrix = (v: Plan.View, rows: ReadonlyArray<Nest.Dim>, columns: ReadonlyArray<Nest.Dim>): readonly [number, number] | null => {
  const [row, column] = [Nest.flat(v, rows), Nest.flat(v, columns)]
  if (row === null || column === null) return null
  const [m, n] = [Nest.sizeOf(rows), Nest.sizeOf(columns)]
  return row === 1 || column === 1 || m <= 1 || n <= 1 ? [row, column] : null
}

interface Roles {
  readonly batch: ReadonlyArray<Nest.Dim>
  readonly m: ReadonlyArray<Nest.Dim>
  readonly n: ReadonlyArray<Nest.Dim>
  readonly k: ReadonlyArray<Nest.Dim>
}

/** Which axes are rows, columns, contracted and batch, each in the memory order that suits most operands. */
const rolesOf = (x: Plan.View, y: Plan.View, out: Plan.View, over: ReadonlyArray<string>): Roles => {
  const has = (v: Plan.View, name: string) => v.dimensions.some((d) => d.name === name)
  const order = Nest.memoryOrder(out)
  return {
    batch: order.filter((d) => has(x, d.name) && has(y, d.name)),
    m: order.filter((d) => has(x, d.name) && !has(y, d.name)),
    n: order.filter((d) => !has(x, d.name)),
    k: Nest.memoryOrder(x).filter((d) => over.includes(d.name))
  }
}

/** One product `out = x * y` summed over `over`; shared axes not summed are batch axes. */
export const emitContract = (
  x: Plan.View,
  y: Plan.View,
  out: Plan.View,
  over: ReadonlyArray<string>,
  emission: Nest.Emission
): void => {
  const roles = rolesOf(x, y, out, over)
  if (roles.m.length === 0 && roles.n.length === 0) return emitDots(x, y, out, roles, emission)
  // The columns of the result should be contiguous: swap the operands when its rows are.
  const innermost = Nest.memoryOrder(out).filter((d) => d.size > 1 && !roles.batch.some((b) => b.name === d.name)).at(-1)
  const swap = innermost !== undefined && roles.m.some((d) => d.name === innermost.name)
  if (swap) product(y, x, out, { ...roles, m: roles.n, n: roles.m }, emission)
  else product(x, y, out, roles, emission)
}

const product = (a: Plan.View, b: Plan.View, out: Plan.View, roles: Roles, emission: Nest.Emission): void => {
  const { batch, k, m, n } = roles
  const c = matrix(out, m, n)
  const target = c !== null && (c[1] === 1 || Nest.sizeOf(n) <= 1) && batch.length <= 4 ? null : emission.temporary([...batch, ...m, ...n], out.dtype)
  const result = target ?? out
  const [left, right] = [usable(a, batch, m, k, emission), usable(b, batch, k, n, emission)]
  const [aStrides, bStrides, cStrides] = [matrix(left, m, k)!, matrix(right, k, n)!, matrix(result, m, n)!]
  const outer = Nest.nestOf(batch, [left, right, result])
  const precision = a.dtype === "bf16" && b.dtype === "bf16" ? 1 : 0
  const words: ReadonlyArray<Word> = [
    outer.sizes.length,
    ...outer.sizes,
    Nest.sizeOf(m),
    1,
    1,
    precision,
    0,
    0,
    double(1),
    0,
    operand(null),
    0,
    Nest.sizeOf(k),
    operand(left),
    aStrides[0],
    aStrides[1],
    ...outer.strides[0]!,
    operand(right),
    bStrides[0],
    bStrides[1],
    ...outer.strides[1]!,
    Nest.sizeOf(n),
    operand(result),
    cStrides[0],
    Nest.sizeOf(n) <= 1 ? 1 : cStrides[1],
    ...outer.strides[2]!,
    operand(null),
    0,
    operand(null),
    0
  ]
  emission.push({ opcode: opcodes.GEMM, words }, [left, right], [result])
  if (target !== null) Nest.copy(target, out, emission)
}

/** The operand as the library can read it, copied when its axes do not walk memory evenly. */
const usable = (
  v: Plan.View,
  batch: ReadonlyArray<Nest.Dim>,
  rows: ReadonlyArray<Nest.Dim>,
  columns: ReadonlyArray<Nest.Dim>,
  emission: Nest.Emission
): Plan.View => {
  if (matrix(v, rows, columns) !== null && dense(v.dtype) && Nest.nestOf(batch, [v]).sizes.length <= 4 && batch.length <= 4) return v
  return Nest.contiguous(v, [...batch, ...rows, ...columns], emission)
}

/** Neither rows nor columns: a dot product, or one for every batch element. */
const emitDots = (x: Plan.View, y: Plan.View, out: Plan.View, { batch, k }: Roles, emission: Nest.Emission): void => {
  if (Nest.sizeOf(batch) === 1) {
    const left = Nest.flat(x, k) === null ? Nest.contiguous(x, k, emission) : x
    const right = Nest.flat(y, k) === null ? Nest.contiguous(y, k, emission) : y
    emission.push(
      {
        opcode: opcodes.DOT,
        words: [0, Nest.sizeOf(k), operand(left), Nest.flat(left, k)!, operand(right), Nest.flat(right, k)!, operand(out)]
      },
      [left, right],
      [out]
    )
    return
  }
  const each = emission.temporary(Nest.memoryOrder(x), "f32")
  multiply(x, y, each, emission)
  emitReduce(0, each, out, emission)
}

const multiply = (x: Plan.View, y: Plan.View, to: Plan.View, emission: Nest.Emission): void => {
  const nest = Nest.nestOf(Nest.memoryOrder(to), [x, y, to])
  const words: ReadonlyArray<Word> = [
    nest.sizes.length,
    2,
    1,
    2,
    ...nest.sizes,
    ...[x, y, to].flatMap((v, i): ReadonlyArray<Word> => [operand(v), ...nest.strides[i]!]),
    ...[vm.MUL, 2, 0, 1, 0, 0],
    ...[vm.STORE, 0, 2, 0, 0, 0]
  ]
  emission.push({ opcode: opcodes.POINTWISE, words }, [x, y], [to], true)
}

/** kind: 0 sum, 1 max, 2 argmax. Axes that `to` lacks are reduced. */
export const emitReduce = (kind: 0 | 1 | 2, x: Plan.View, to: Plan.View, emission: Nest.Emission): void => {
  const nest = Nest.nestOf(Nest.memoryOrder(x), [x, to], kind === 2 ? new Set(x.dimensions.map((d) => d.name)) : new Set())
  emission.push(
    {
      opcode: opcodes.REDUCE,
      words: [kind, nest.sizes.length, ...nest.sizes, operand(x), ...nest.strides[0]!, operand(to), ...nest.strides[1]!]
    },
    [x],
    [to]
  )
}
