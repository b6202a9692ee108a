/** In which types a program stores and calculates, by kind of work: what a precision policy made of it, read from the program itself. */
import { kindOf } from "./DType.ts"
import type { DType } from "./DType.ts"
import type { AnyTensor, Body, Equation } from "./Node.ts"
import { castP, broadcastP } from "./primitives/algebra.ts"
import type { Calculating } from "./primitives/composite.ts"
import { scanP } from "./primitives/control.ts"
import type { ScanParams } from "./primitives/control.ts"
import { placeP } from "./primitives/emit.ts"
import { logitScaleName, namedP } from "./primitives/mark.ts"

/** Kinds of work, in the order in which they are listed. */
export const kinds = [
  "parameters",
  "parameters in use",
  "optimizer state",
  "optimizer arithmetic",
  "gradients",
  "gradient sums",
  "gradient reduction",
  "residual stream",
  "contractions",
  "norms",
  "softmax",
  "logits",
  "losses",
  "logit scale",
  "reductions",
  "elementwise"
] as const
export type Kind = (typeof kinds)[number]

/** How many, by storage type. */
export type Counts = Readonly<Partial<Record<DType, number>>>

export interface Row {
  readonly kind: Kind
  /** Types of the tensors that it keeps or gives. */
  readonly stored: Counts
  /** Types in which it calculates; empty for what only stands there. Of contractions those of the operands: they add up in f32. */
  readonly calculated: Counts
}

class Tally {
  readonly rows = new Map<Kind, { readonly stored: Map<DType, number>; readonly calculated: Map<DType, number> }>()

  add(kind: Kind, times: number, stored: DType | null, calculated: DType | null): void {
    const row = this.rows.get(kind) ?? { stored: new Map(), calculated: new Map() }
    this.rows.set(kind, row)
    if (stored !== null) row.stored.set(stored, (row.stored.get(stored) ?? 0) + times)
    if (calculated !== null) row.calculated.set(calculated, (row.calculated.get(calculated) ?? 0) + times)
  }
}

const isFloat = (x: AnyTensor): boolean => kindOf(x.type.dtype) === "float"

/**
 * The types of a program: tensors that it takes, and equations as often as they run, those of regions and of the backward pass included. Of a step
 * every kind is there; of other programs what they have. Only floats are counted.
 */
export const of = (program: Body): ReadonlyArray<Row> => {
  const tally = new Tally()
  for (const x of program.inputs) {
    if (!isFloat(x)) continue
    if (x.role === "parameter") tally.add("parameters", 1, x.type.dtype, null)
    if (x.role === "optimizer") tally.add("optimizer state", 1, x.type.dtype, null)
  }
  walk(program, 1, tally)
  return kinds.flatMap((kind) => {
    const row = tally.rows.get(kind)
    return row === undefined
      ? []
      : [{ kind, stored: Object.fromEntries(row.stored), calculated: Object.fromEntries(row.calculated) }]
  })
}

const walk = (body: Body, times: number, tally: Tally): void => {
  for (const e of body.equations) {
    const { meaning } = e.primitive
    if (meaning.kind !== "region") {
      count(e, times, tally)
      continue
    }
    const scan = e.primitive === scanP ? (e.params as ScanParams) : null
    if (scan !== null) countScan(e, scan, times, tally)
    for (const inner of meaning.bodies(e.params)) walk(inner, times * (scan?.size ?? 1), tally)
  }
}

/** The stream between layers, and gradients that add up over microbatches. */
const countScan = (e: Equation, scan: ScanParams, times: number, tally: Tally): void => {
  e.outputs.forEach((o, i) => {
    if (!isFloat(o)) return
    if (i < scan.carried && scan.axis === "layers") tally.add("residual stream", times, o.type.dtype, null)
    if (i >= scan.carried + scan.stacked && scan.axis === "micro" && o.role === "gradient")
      tally.add("gradient sums", times, o.type.dtype, null)
  })
}

const count = (e: Equation, times: number, tally: Tally): void => {
  const [x] = e.inputs
  const [o] = e.outputs
  if (o === undefined || !isFloat(o)) return
  const add = (kind: Kind, stored: DType | null, calculated: DType | null) => tally.add(kind, times, stored, calculated)
  if (e.primitive === placeP) {
    if (o.role === "compute" && x!.role === "parameter") add("parameters in use", o.type.dtype, null)
    if (o.role === "gradient") add("gradients", o.type.dtype, null)
    if (o.role === "optimizer" && x!.role === "gradient") add("gradient reduction", o.type.dtype, null)
    return
  }
  if (e.primitive.meaning.kind === "collective") return
  const own = (e.params as Calculating).calculation ?? "f32"
  // An update is a composite, or its parts.
  if (o.role === "optimizer") {
    if (e.primitive.precision !== "exact" || e.primitive.meaning.kind === "composite")
      add("optimizer arithmetic", null, e.primitive.meaning.kind === "composite" ? own : o.type.dtype)
    return
  }
  if (e.inputs.some(isScale) && e.primitive.precision === "pointwise")
    return add("logit scale", o.type.dtype, o.type.dtype)
  switch (e.primitive.precision) {
    case "matmul":
      return add(e.params.over?.length === 0 ? "elementwise" : "contractions", o.type.dtype, x!.type.dtype)
    case "norm":
      return add("norms", o.type.dtype, own)
    case "softmax":
      return add("softmax", o.type.dtype, own)
    case "loss":
      add("logits", x!.type.dtype, null)
      return add("losses", o.type.dtype, own)
    case "reduction":
      // Sums add up in f32 and are rounded once.
      return add("reductions", o.type.dtype, "f32")
    case "pointwise":
      return add("elementwise", o.type.dtype, o.type.dtype)
    case "exact":
      return
  }
}

/** Whether a tensor is a marked logit scale, in whatever type. */
const isScale = (x: AnyTensor): boolean => {
  let at = x
  for (;;) {
    const e = at.equation
    if (e === null) return false
    if (e.primitive === namedP) return e.params.as === logitScaleName
    if (e.primitive !== castP && e.primitive !== broadcastP && e.primitive !== placeP) return false
    at = e.inputs[0]!
  }
}

const text = (counts: Counts): string =>
  Object.entries(counts)
    .toSorted(([, a], [, b]) => b - a)
    .map(([dtype, n]) => `${dtype} ${n}`)
    .join(", ")

/** A table: kind, types stored with their numbers, types calculated in. */
export const print = (rows: ReadonlyArray<Row>): string => {
  const lines = [
    ["", "stored", "calculated"],
    ...rows.map(({ calculated, kind, stored }) => [kind, text(stored), text(calculated)])
  ]
  const widths = [0, 1].map((column) => Math.max(...lines.map((line) => line[column]!.length)))
  return lines
    .map(([kind, stored, calculated]) =>
      `${kind!.padEnd(widths[0]!)}  ${stored!.padEnd(widths[1]!)}  ${calculated!}`.trimEnd()
    )
    .join("\n")
}
