/** Kernels that work on rows: normalisation, cross-entropy. */
import type { Equation } from "@tessera/core/Node"
import type * as Plan from "@tessera/core/Plan"
import type { CrossEntropyParams } from "@tessera/core/primitives/loss"
import type { NormParams } from "@tessera/core/primitives/norm"
import { opcodes } from "../opcodes.ts"
import { double, operand } from "../Words.ts"
import * as Nest from "./nest.ts"

/** Rows in memory order of `v`, the row axis last; and the view, copied when rows are not evenly spaced or not contiguous inside. */
const byRows = (v: Plan.View, axis: string, rows: ReadonlyArray<Nest.Dim>, emission: Nest.Emission) => {
  const width = v.dimensions.find((d) => d.name === axis)!
  const even = Nest.flat(v, rows) !== null && (width.stride === 1 || width.size <= 1)
  const view = even ? v : Nest.contiguous(v, [...rows, { name: axis, size: width.size }], emission)
  return { view, stride: Nest.sizeOf(rows) <= 1 ? width.size : Nest.flat(view, rows)! }
}

const outputRows = (v: Plan.View, axis: string, rows: ReadonlyArray<Nest.Dim>, emission: Nest.Emission) => {
  const width = v.dimensions.find((d) => d.name === axis)!
  const even = Nest.flat(v, rows) !== null && (width.stride === 1 || width.size <= 1)
  const view = even ? v : emission.temporary([...rows, { name: axis, size: width.size }], v.dtype)
  return {
    view,
    stride: Nest.sizeOf(rows) <= 1 ? width.size : Nest.flat(view, rows)!,
    finish: () => {
      if (!even) Nest.copy(view, v, emission)
    }
  }
}

const rowsOf = (v: Plan.View, axis: string): ReadonlyArray<Nest.Dim> =>
  Nest.memoryOrder(v).filter((d) => d.name !== axis)
const widthOf = (v: Plan.View, axis: string): number => v.dimensions.find((d) => d.name === axis)!.size

export const emitNorm = (
  e: Equation,
  inputs: ReadonlyArray<Plan.View>,
  outputs: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const p = e.params as NormParams
  const rows = rowsOf(inputs[0]!, p.axis)
  const x = byRows(inputs[0]!, p.axis, rows, emission)
  const weight = (v: Plan.View | undefined) =>
    v === undefined ? null : Nest.contiguous(v, [{ name: p.axis, size: widthOf(v, p.axis) }], emission)
  const [gamma, beta] = [weight(inputs[1]), weight(inputs[2])]
  const y = outputRows(outputs[0]!, p.axis, rows, emission)
  const mean = Nest.denseOutput(outputs[1]!, rows, emission)
  const rstd = Nest.denseOutput(outputs[2]!, rows, emission)
  if (p.kind === "rms") Nest.fill(outputs[1]!, 0, emission)
  emission.push(
    {
      opcode: opcodes.NORM,
      words: [
        p.kind === "layer" ? 0 : 1,
        Nest.sizeOf(rows),
        widthOf(inputs[0]!, p.axis),
        double(p.epsilon),
        operand(x.view),
        x.stride,
        operand(gamma),
        operand(beta),
        operand(y.view),
        y.stride,
        operand(mean.view),
        operand(rstd.view),
        (gamma === null ? 0 : 1) + (beta === null ? 0 : 2)
      ]
    },
    [x.view, ...(gamma === null ? [] : [gamma]), ...(beta === null ? [] : [beta])],
    p.kind === "rms" ? [y.view, rstd.view] : [y.view, mean.view, rstd.view]
  )
  if (p.kind === "rms" && beta !== null) Nest.accumulate(beta, y.view, emission)
  y.finish()
  if (p.kind === "layer") mean.finish()
  rstd.finish()
}

export const emitNormBackward = (
  e: Equation,
  inputs: ReadonlyArray<Plan.View>,
  outputs: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const p = e.params as NormParams
  const [input, m, r, cotangent, g] = inputs
  const rows = rowsOf(input!, p.axis)
  const x = byRows(input!, p.axis, rows, emission)
  const dy = byRows(cotangent!, p.axis, rows, emission)
  const mean = Nest.contiguous(m!, rows, emission)
  const rstd = Nest.contiguous(r!, rows, emission)
  const own = [{ name: p.axis, size: widthOf(input!, p.axis) }]
  const gamma = g === undefined ? null : Nest.contiguous(g, own, emission)
  const dx = outputRows(outputs[0]!, p.axis, rows, emission)
  const dGamma = outputs[1] === undefined ? null : Nest.denseOutput(outputs[1], own, emission)
  const dBeta = outputs[2] === undefined ? null : Nest.denseOutput(outputs[2], own, emission)
  emission.push(
    {
      opcode: opcodes.NORM_BACKWARD,
      words: [
        p.kind === "layer" ? 0 : 1,
        Nest.sizeOf(rows),
        own[0]!.size,
        double(p.epsilon),
        operand(x.view),
        x.stride,
        operand(gamma),
        operand(mean),
        operand(rstd),
        operand(dy.view),
        dy.stride,
        operand(dx.view),
        dx.stride,
        operand(dGamma?.view ?? null),
        operand(dBeta?.view ?? null),
        (gamma === null ? 0 : 1) + (dBeta === null ? 0 : 2)
      ]
    },
    [x.view, mean, rstd, dy.view, ...(gamma === null ? [] : [gamma])],
    [dx.view, ...(dGamma === null ? [] : [dGamma.view]), ...(dBeta === null ? [] : [dBeta.view])]
  )
  dx.finish()
  dGamma?.finish()
  dBeta?.finish()
}

/** Labels as i32 with one stride, or distributions with contiguous rows in f32-like storage. */
const targetsOf = (v: Plan.View, p: CrossEntropyParams, rows: ReadonlyArray<Nest.Dim>, emission: Nest.Emission) => {
  if (p.targets === "soft") return byRows(v, p.classes, rows, emission)
  if (v.dtype === "i32" && Nest.flat(v, rows) !== null)
    return { view: v, stride: Nest.sizeOf(rows) <= 1 ? 1 : Nest.flat(v, rows)! }
  const view = emission.temporary(rows, "i32")
  Nest.copy(v, view, emission)
  return { view, stride: 1 }
}

export const emitCrossEntropy = (
  e: Equation,
  inputs: ReadonlyArray<Plan.View>,
  outputs: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const p = e.params as CrossEntropyParams
  const rows = rowsOf(inputs[0]!, p.classes)
  const logits = byRows(inputs[0]!, p.classes, rows, emission)
  const targets = targetsOf(inputs[1]!, p, rows, emission)
  const [loss, lse] = [Nest.denseOutput(outputs[0]!, rows, emission), Nest.denseOutput(outputs[1]!, rows, emission)]
  emission.push(
    {
      opcode: opcodes.CROSS_ENTROPY,
      words: [
        Nest.sizeOf(rows),
        widthOf(inputs[0]!, p.classes),
        p.targets === "labels" ? 0 : 1,
        double(p.smoothing),
        operand(logits.view),
        logits.stride,
        operand(targets.view),
        targets.stride,
        operand(loss.view),
        operand(lse.view)
      ]
    },
    [logits.view, targets.view],
    [loss.view, lse.view]
  )
  loss.finish()
  lse.finish()
}

export const emitCrossEntropyBackward = (
  e: Equation,
  inputs: ReadonlyArray<Plan.View>,
  outputs: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const p = e.params as CrossEntropyParams
  const rows = rowsOf(inputs[0]!, p.classes)
  const logits = byRows(inputs[0]!, p.classes, rows, emission)
  const targets = targetsOf(inputs[1]!, p, rows, emission)
  const lse = Nest.contiguous(inputs[2]!, rows, emission)
  const dLoss = Nest.flat(inputs[3]!, rows) === null ? Nest.contiguous(inputs[3]!, rows, emission) : inputs[3]!
  const dLogits = outputRows(outputs[0]!, p.classes, rows, emission)
  emission.push(
    {
      opcode: opcodes.CROSS_ENTROPY_BACKWARD,
      words: [
        Nest.sizeOf(rows),
        widthOf(inputs[0]!, p.classes),
        p.targets === "labels" ? 0 : 1,
        double(p.smoothing),
        operand(logits.view),
        logits.stride,
        operand(targets.view),
        targets.stride,
        operand(lse),
        operand(dLoss),
        Nest.flat(dLoss, rows)!,
        operand(dLogits.view),
        dLogits.stride
      ]
    },
    [logits.view, targets.view, lse, dLoss],
    [dLogits.view]
  )
  dLogits.finish()
}
