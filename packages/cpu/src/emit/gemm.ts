/** Named contractions as packed matrix products. */
import * as DType from "@tessera/core/DType"
import type { AnyTensor, Body, Equation } from "@tessera/core/Node"
import * as Plan from "@tessera/core/Plan"
import { geluKinds, opcodes, vm } from "../opcodes.ts"
import type { Word } from "../Words.ts"
import { double, operand } from "../Words.ts"
import * as Nest from "./nest.ts"

const dense = (dtype: DType.DType) => dtype === "f32" || dtype === "bf16" || dtype === "f16"

/** Row and column stride of a matrix operand, columns being `columns`; null where memory does not walk them evenly. */
const matrix = (
  v: Plan.View,
  rows: ReadonlyArray<Nest.Dim>,
  columns: ReadonlyArray<Nest.Dim>
): readonly [number, number] | null => {
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
    // A summed axis that one operand lacks repeats it.
    k: [...Nest.memoryOrder(x), ...Nest.memoryOrder(y).filter((d) => !has(x, d.name))].filter((d) =>
      over.includes(d.name)
    )
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
  const innermost = Nest.memoryOrder(out)
    .filter((d) => d.size > 1 && !roles.batch.some((b) => b.name === d.name))
    .at(-1)
  const swap = innermost !== undefined && roles.m.some((d) => d.name === innermost.name)
  if (swap) product(y, x, out, { ...roles, m: roles.n, n: roles.m }, emission)
  else product(x, y, out, roles, emission)
}

const product = (a: Plan.View, b: Plan.View, out: Plan.View, roles: Roles, emission: Nest.Emission): void => {
  const { batch, k, m, n } = roles
  const c = matrix(out, m, n)
  const target =
    c !== null && (c[1] === 1 || Nest.sizeOf(n) <= 1) && batch.length <= 4
      ? null
      : emission.temporary([...batch, ...m, ...n], out.dtype)
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
  if (
    matrix(v, rows, columns) !== null &&
    dense(v.dtype) &&
    Nest.nestOf(batch, [v]).sizes.length <= 4 &&
    batch.length <= 4
  )
    return v
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
        words: [
          0,
          Nest.sizeOf(k),
          operand(left),
          Nest.flat(left, k)!,
          operand(right),
          Nest.flat(right, k)!,
          operand(out)
        ]
      },
      [left, right],
      [out]
    )
    return
  }
  const each = emission.temporary(
    [...Nest.memoryOrder(x), ...Nest.memoryOrder(y).filter((d) => !x.dimensions.some((o) => o.name === d.name))],
    "f32"
  )
  multiply(x, y, each, emission)
  emitReduce(0, each, out, emission)
}

const multiply = (x: Plan.View, y: Plan.View, to: Plan.View, emission: Nest.Emission): void =>
  Nest.kernel([x, y], to, [[vm.MUL, 2, 0, 1, 0, 0]], 2, emission, { inPlace: true })

/** kind: 0 sum, 1 max, 2 argmax. Axes that `to` lacks are reduced. */
export const emitReduce = (kind: 0 | 1 | 2, x: Plan.View, to: Plan.View, emission: Nest.Emission): void => {
  const nest = Nest.nestOf(
    Nest.memoryOrder(x),
    [x, to],
    kind === 2 ? new Set(x.dimensions.map((d) => d.name)) : new Set()
  )
  emission.push(
    {
      opcode: opcodes.REDUCE,
      words: [kind, nest.sizes.length, ...nest.sizes, operand(x), ...nest.strides[0]!, operand(to), ...nest.strides[1]!]
    },
    [x],
    [to]
  )
}

/** One value that a fused product computes: sums of products, then a bias, then an activation or a residual. */
interface Value {
  readonly contracts: ReadonlyArray<Equation>
  readonly bias: AnyTensor | null
  readonly activation: number
  readonly before: AnyTensor | null
  readonly residual: AnyTensor | null
}

/** Reads the body of a fused product; null where it is not one that the library has. */
const valuesOf = (body: Body): ReadonlyMap<AnyTensor, Value> => {
  const values = new Map<AnyTensor, Value>()
  for (const e of body.equations) {
    const out = e.outputs[0]!
    if (e.primitive.name === "contract") {
      values.set(out, { contracts: [e], bias: null, activation: 0, before: null, residual: null })
    } else if (e.primitive.name === "gelu") {
      const kind = geluKinds[e.params.kind as keyof typeof geluKinds]
      values.set(out, { ...values.get(e.inputs[0]!)!, activation: kind, before: e.inputs[0]! })
      values.delete(e.inputs[0]!)
    } else {
      const [x, y] = e.inputs as readonly [AnyTensor, AnyTensor]
      const [a, b] = [values.get(x), values.get(y)]
      if (a !== undefined && b !== undefined) values.set(out, { ...a, contracts: [...a.contracts, ...b.contracts] })
      else {
        const [value, other] = a !== undefined ? [a, y] : [b!, x]
        const isBias = other.type.axes.length < out.type.axes.length
        values.set(out, isBias ? { ...value, bias: other } : { ...value, residual: other })
      }
      values.delete(x)
      values.delete(y)
    }
  }
  return values
}

/**
 * A fused product in one instruction: products that share their left matrix side by side, or products added up, with bias, GELU and residual in
 * the store. False where memory does not allow it; then the caller emits the equations one by one.
 */
export const emitProduct = (
  body: Body,
  inputs: ReadonlyArray<Plan.View>,
  outputs: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): boolean => {
  const viewOf = new Map<AnyTensor, Plan.View>(body.inputs.map((x, i) => [x, inputs[i]!]))
  const place = new Map<AnyTensor, Plan.View>(body.outputs.map((x, i) => [x, outputs[i]!]))
  const values = [...valuesOf(body)]
  const first = values[0]![1].contracts[0]!
  if (values.some(([o]) => !place.has(o)) || (values.length > 1 && values.some(([, v]) => v.contracts.length > 1)))
    return false
  const target = (o: AnyTensor): Plan.View => place.get(o)!
  /** Rows and columns of a matrix are all its axes: others would be batches or repeated, which one product cannot do. */
  const isMatrix = (v: Plan.View, rows: ReadonlyArray<Nest.Dim>, columns: ReadonlyArray<Nest.Dim>) =>
    v.dimensions.length === rows.length + columns.length &&
    [...rows, ...columns].every((d) => v.dimensions.some((o) => o.name === d.name))
  const [x0, y0] = first.inputs.map((x) => viewOf.get(x)!) as [Plan.View, Plan.View]
  const roles = rolesOf(x0, y0, target(values[0]![0]), first.params.over)
  if (roles.batch.length > 0 || roles.m.length === 0) return false
  const { m } = roles
  interface Column {
    readonly n: ReadonlyArray<Nest.Dim>
    readonly view: Plan.View
    readonly strides: readonly [number, number]
    readonly value: Value
  }
  const columns: Array<Column> = []
  for (const [o, value] of values) {
    const view = target(o)
    const n = Nest.memoryOrder(view).filter((d) => !m.some((r) => r.name === d.name))
    const strides = matrix(view, m, n)
    if (strides === null || n.length === 0 || (strides[1] !== 1 && Nest.sizeOf(n) > 1)) return false
    columns.push({ n, view, strides, value })
  }
  // Sums: the k axes of each contraction; siblings share the first operand and its k axes.
  const sums = values.length > 1 ? [first] : values[0]![1].contracts
  const parts: Array<{
    readonly left: Plan.View
    readonly a: readonly [number, number]
    readonly k: ReadonlyArray<Nest.Dim>
    readonly right: ReadonlyArray<readonly [Plan.View, readonly [number, number]]>
  }> = []
  for (const contract of sums) {
    const views = contract.inputs.map((x) => viewOf.get(x)!) as [Plan.View, Plan.View]
    // The rows may stand on either side of an added product.
    const [left, right] = views[0].dimensions.some((d) => m.some((r) => r.name === d.name))
      ? views
      : [views[1], views[0]]
    const k = Nest.memoryOrder(left).filter((d) => contract.params.over.includes(d.name))
    const a = matrix(left, m, k)
    if (a === null || !isMatrix(left, m, k)) return false
    const rights: Array<readonly [Plan.View, readonly [number, number]]> = []
    for (const column of columns) {
      const view = values.length > 1 ? viewOf.get(column.value.contracts[0]!.inputs[1]!)! : right
      const strides = matrix(view, k, column.n)
      if (strides === null || !isMatrix(view, k, column.n)) return false
      rights.push([view, strides])
    }
    parts.push({ left, a, k, right: rights })
  }
  const residuals = columns.map(({ value }) => (value.residual === null ? null : viewOf.get(value.residual)!))
  const before = columns.map(({ value }) => (value.before === null ? null : (place.get(value.before) ?? null)))
  for (const [i, column] of columns.entries()) {
    for (const v of [residuals[i]!, before[i]!]) {
      if (v === null) continue
      if (Nest.flat(v, m) === null || (Nest.flat(v, column.n) !== 1 && Nest.sizeOf(column.n) > 1)) return false
    }
  }
  const biases = columns.map(({ value }) => (value.bias === null ? null : viewOf.get(value.bias)!))
  if (biases.some((b) => b === null) && biases.some((b) => b !== null)) return false
  const bias =
    biases[0] === null
      ? null
      : joinBiases(
          biases as ReadonlyArray<Plan.View>,
          columns.map((c) => c.n),
          emission
        )
  // Added products may differ in storage: rounding to bf16 is right only where all are.
  const isHalf = parts.every((p) => [p.left, ...p.right.map(([v]) => v)].every((v) => v.dtype === "bf16"))
  const precision = isHalf ? 1 : 0
  const flags =
    (bias === null ? 0 : 1) + (before.some((b) => b !== null) ? 2 : 0) + (residuals.some((r) => r !== null) ? 4 : 0)
  const words: ReadonlyArray<Word> = [
    0,
    Nest.sizeOf(m),
    parts.length,
    columns.length,
    precision,
    0,
    columns[0]!.value.activation,
    double(1),
    flags,
    operand(bias),
    1,
    ...parts.flatMap(({ a, k, left }): ReadonlyArray<Word> => [Nest.sizeOf(k), operand(left), a[0], a[1]]),
    ...parts.flatMap(({ right }) => right.flatMap(([view, b]): ReadonlyArray<Word> => [operand(view), b[0], b[1]])),
    ...columns.flatMap(({ n, strides, view }, i): ReadonlyArray<Word> => [
      Nest.sizeOf(n),
      operand(view),
      strides[0],
      Nest.sizeOf(n) <= 1 ? 1 : strides[1],
      operand(before[i]!),
      before[i] === null ? 0 : Nest.flat(before[i]!, m)!,
      operand(residuals[i]!),
      residuals[i] === null ? 0 : Nest.flat(residuals[i]!, m)!
    ])
  ]
  const reads = [
    ...parts.flatMap((p) => [p.left, ...p.right.map(([v]) => v)]),
    ...residuals.filter((r) => r !== null),
    ...(bias === null ? [] : [bias])
  ]
  emission.push({ opcode: opcodes.GEMM, words }, reads, [
    ...columns.map((c) => c.view),
    ...before.filter((b) => b !== null)
  ])
  return true
}

/** Biases of neighbouring columns, one behind another. */
const joinBiases = (
  biases: ReadonlyArray<Plan.View>,
  columns: ReadonlyArray<ReadonlyArray<Nest.Dim>>,
  emission: Nest.Emission
): Plan.View => {
  if (biases.length === 1) return Nest.contiguous(biases[0]!, columns[0]!, emission)
  const whole = emission.temporary(
    [{ name: "column", size: columns.reduce((n, c) => n + Nest.sizeOf(c), 0) }],
    biases[0]!.dtype
  )
  let offset = 0
  biases.forEach((b, i) => {
    Nest.copy(b, { ...whole, offset, dimensions: Plan.dimensions(columns[i]!) }, emission)
    offset += Nest.sizeOf(columns[i]!)
  })
  return whole
}
