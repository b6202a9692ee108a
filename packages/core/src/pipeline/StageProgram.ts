/**
 * What one stage runs: for each of its chunks a forward and a backward program that read the parameters as the stage stores them and add up gradients
 * where the update will read them.
 */
import * as Axis from "../Axis.ts"
import type { AnyTensor, Body, TensorType } from "../Node.ts"
import { build, input } from "../Node.ts"
import { addP } from "../primitives/algebra.ts"
import { mergeP, padP, sliceP, splitP } from "../primitives/axes.ts"
import * as Program from "../Program.ts"
import type { Given } from "./Cut.ts"
import type { ChunkStep, PipelineStep, Runs } from "./PipelineStep.ts"

/** Where an operand of a stage's program comes from, or where a result goes. */
export type Slot =
  /** From the chunk before, to the chunk after: of the same microbatch. */
  | { readonly kind: "boundary"; readonly index: number }
  /** Gradients of boundary values, the other way. */
  | { readonly kind: "cotangent"; readonly index: number }
  | { readonly kind: "residual"; readonly index: number }
  /** Parameter `index` as the stage stores it. */
  | { readonly kind: "parameter"; readonly index: number }
  /** Leaf `index` of the batch, of one microbatch. */
  | { readonly kind: "batch"; readonly index: number }
  | { readonly kind: "seed" | "lossScale" }
  /** What adds up over microbatches: sums of the loss, gradients of trained leaf `index`. */
  | { readonly kind: "sum" | "gradient"; readonly index: number }

export const nameOf = (slot: Slot): string => ("index" in slot ? `${slot.kind} ${slot.index}` : slot.kind)

export interface StageProgram {
  readonly program: Program.Program
  readonly inputs: ReadonlyArray<Slot>
  readonly outputs: ReadonlyArray<Slot>
}

export interface ChunkPrograms {
  /** Number in the whole model. */
  readonly number: number
  readonly forward: StageProgram
  readonly backward: StageProgram
  /** Types of what the chunk before sends, and of what comes back from the chunk after. */
  readonly received: ReadonlyArray<TensorType>
  readonly returned: ReadonlyArray<TensorType>
}

/** Types of what a stage adds up, as its ranks hold it. */
export interface Totals {
  readonly sums: ReadonlyArray<TensorType>
  /** By trained leaf, in order. */
  readonly gradients: ReadonlyArray<TensorType>
}

export const totalsOf = (step: PipelineStep): Totals => {
  const { held, sums } = step.counts
  const types = step.update.body.inputs.map((x) => x.type)
  return { sums: types.slice(held + 3, held + 3 + sums), gradients: types.slice(held + 3 + sums) }
}

/** The programs of the chunks of a stage, first to last. */
export const programsOf = (step: PipelineStep, stage: number): ReadonlyArray<ChunkPrograms> =>
  step.chunks.flatMap((own, number) => (number % step.stages === stage ? [chunkPrograms(step, own, number)] : []))

/** Both ends of a boundary must agree about the order of axes: what travels is memory. */
const sameOrder = (sent: ReadonlyArray<AnyTensor>, received: ReadonlyArray<TensorType>, where: string): void =>
  sent.forEach((x, i) => {
    const [a, b] = [Axis.print(x.type.axes), Axis.print(received[i]!.axes)]
    if (a !== b || x.type.dtype !== received[i]!.dtype)
      throw new Error(`${where} sends ${a}, the other side reads ${b}`)
  })

/** Inputs of a program while it is put together: one for each slot. */
class Inputs {
  readonly slots: Array<Slot> = []
  readonly tensors: Array<AnyTensor> = []

  of(slot: Slot, type: TensorType): AnyTensor {
    const at = this.slots.findIndex((s) => nameOf(s) === nameOf(slot))
    if (at >= 0) return this.tensors[at]!
    this.slots.push(slot)
    const x = input(type, slot.kind === "parameter" || slot.kind === "gradient" ? slot.kind : "compute")
    this.tensors.push(x)
    return x
  }

  program(outputs: ReadonlyArray<readonly [Slot, AnyTensor]>): StageProgram {
    return {
      program: Program.make(
        this.tensors,
        outputs.map(([, x]) => x)
      ) as Program.Program,
      inputs: this.slots,
      outputs: outputs.map(([slot]) => slot)
    }
  }
}

const chunkPrograms = (step: PipelineStep, own: ChunkStep, number: number): ChunkPrograms => {
  const { boundary, given } = own.chunk
  const chunk = Math.floor(number / step.stages)
  const totals = totalsOf(step)
  const types = (body: Body) => body.inputs.map((x) => x.type)
  /** Operand i of the chunk's forward program. */
  const operand = (inputs: Inputs, i: number): AnyTensor => {
    const type = types(own.forward.body)[i]!
    return i < boundary
      ? inputs.of({ kind: "boundary", index: i }, type)
      : givenOf(step, inputs, given[i - boundary]!, type, chunk)
  }
  const last = number === step.chunks.length - 1
  const forward = new Inputs()
  const results = Program.inline(
    own.forward.body,
    own.forward.body.inputs.map((_, i) => operand(forward, i))
  )
  const handed = results.slice(0, own.outputs).map((x, index): readonly [Slot, AnyTensor] => {
    if (!last) return [{ kind: "boundary", index }, x]
    const slot: Slot = { kind: "sum", index }
    return [slot, plus(forward.of(slot, totals.sums[index]!), x)]
  })
  const next = step.chunks[number + 1]
  if (next !== undefined)
    sameOrder(
      handed.map(([, x]) => x),
      types(next.forward.body).slice(0, next.chunk.boundary),
      `chunk ${number}`
    )
  const residuals = results
    .slice(own.outputs)
    .map((x, index): readonly [Slot, AnyTensor] => [{ kind: "residual", index }, x])

  const backward = new Inputs()
  const { body } = own.backward
  const cotangents = own.kept.length + residuals.length
  const found = Program.inline(
    body,
    body.inputs.map((x, i) => {
      if (i < own.kept.length) return operand(backward, own.kept[i]!)
      if (i < cotangents) return backward.of({ kind: "residual", index: i - own.kept.length }, x.type)
      return backward.of(last ? { kind: "lossScale" } : { kind: "cotangent", index: i - cotangents }, x.type)
    })
  )
  const count = own.differentiable.filter(Boolean).length
  const back = found.slice(0, count).map((x, index): readonly [Slot, AnyTensor] => [{ kind: "cotangent", index }, x])
  const before = step.chunks[number - 1]
  if (before !== undefined)
    sameOrder(
      back.map(([, x]) => x),
      types(before.backward.body).slice(-count),
      `the derivative of chunk ${number}`
    )
  const added = new Map<number, AnyTensor>()
  own.gradients.forEach((g, i) => {
    const index = step.trained.indexOf(g.index)
    const type = totals.gradients[index]!
    const total = added.get(index) ?? backward.of({ kind: "gradient", index }, type)
    added.set(index, plus(total, placed(found[count + i]!, g, step.runs[g.index]!, type, chunk)))
  })
  return {
    number,
    forward: forward.program([...handed, ...residuals]),
    backward: backward.program([
      ...back,
      ...[...added].map(([index, x]): readonly [Slot, AnyTensor] => [{ kind: "gradient", index }, x])
    ]),
    received: types(own.forward.body).slice(0, boundary),
    returned: last ? [] : types(body).slice(cotangents)
  }
}

const plus = (x: AnyTensor, y: AnyTensor): AnyTensor => build(addP, [x, y], {}, x.role)[0]!

/** A given input of a chunk, cut out of what the stage stores. */
const givenOf = (step: PipelineStep, inputs: Inputs, given: Given, type: TensorType, chunk: number): AnyTensor => {
  const { batch, parameters } = step.counts
  const { index } = given
  if (index >= parameters + batch) return inputs.of({ kind: index === parameters + batch ? "seed" : "lossScale" }, type)
  if (index >= parameters) return inputs.of({ kind: "batch", index: index - parameters }, type)
  const stored = step.update.body.inputs[index]!.type
  const x = cutOut(inputs.of({ kind: "parameter", index }, stored), given, step.runs[index]!, chunk)
  if (!Axis.equal(x.type.axes, type.axes))
    throw new Error(`the stage stores ${Axis.print(x.type.axes)}, its chunk reads ${Axis.print(type.axes)}`)
  return x
}

/** The run of layers of a chunk. */
const cutOut = (x: AnyTensor, { layers }: Given, runs: Runs | null, chunk: number): AnyTensor => {
  if (layers === null || runs?.virtual === 1) return x
  if (runs === null) return slice(x, "layers", layers.start, layers.size)
  const one = slice(x, "virtual", chunk, 1)
  return build(mergeP, [one], { axis: "layers", outer: "virtual", inner: "layers" }, x.role)[0]!
}

const slice = (x: AnyTensor, axis: string, start: number, size: number): AnyTensor =>
  build(sliceP, [x], { axis, to: axis, start, size }, x.role)[0]!

/** A gradient of a run of layers at its place among all that the stage holds. */
const placed = (x: AnyTensor, { layers }: Given, runs: Runs | null, type: TensorType, chunk: number): AnyTensor => {
  if (layers === null || runs?.virtual === 1) return x
  const at = (y: AnyTensor, axis: string, start: number): AnyTensor =>
    build(padP, [y], { axis, to: axis, start, size: Axis.find(type.axes, axis)!.size }, y.role)[0]!
  if (runs === null) return at(x, "layers", layers.start)
  const { size } = Axis.find(x.type.axes, "layers")!
  const one = build(splitP, [x], { axis: "layers", outer: "virtual", inner: "layers", size }, x.role)[0]!
  return at(one, "virtual", chunk)
}
