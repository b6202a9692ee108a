/** Which equation becomes which instructions. */
import * as DType from "@tessera/core/DType"
import { CompileError } from "@tessera/core/Errors"
import type { Equation } from "@tessera/core/Node"
import type * as Plan from "@tessera/core/Plan"
import type { Calculating } from "@tessera/core/primitives/composite"
import * as Program from "@tessera/core/Program"
import { input } from "@tessera/core/Node"
import { build } from "@tessera/core/Node"
import { emitAttention } from "./emit/attention.ts"
import { emitContract, emitProduct, emitReduce } from "./emit/gemm.ts"
import { emitConcat, emitCumsum, emitLookup, emitPack, emitPad, emitScatterAdd, emitUpdateSlice } from "./emit/index.ts"
import * as Nest from "./emit/nest.ts"
import { emitPointwise, isPointwise } from "./emit/pointwise.ts"
import { emitCrossEntropy, emitCrossEntropyBackward, emitNorm, emitNormBackward } from "./emit/rows.ts"

type Emitter = (
  e: Equation,
  inputs: ReadonlyArray<Plan.View>,
  outputs: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
) => void

/** Composites with a kernel of their own; all others run as their decomposition. */
const composites: Readonly<Record<string, Emitter>> = {
  norm: emitNorm,
  normBackward: emitNormBackward,
  attention: emitAttention,
  attentionBackward: emitAttention,
  crossEntropy: emitCrossEntropy,
  crossEntropyBackward: emitCrossEntropyBackward
}

const core: Readonly<Record<string, Emitter>> = {
  contract: (e, [x, y], [out], emission) => emitContract(x!, y!, out!, e.params.over, emission),
  sum: (_e, [x], [out], emission) => emitReduce(0, x!, out!, emission),
  max: (_e, [x], [out], emission) => emitReduce(1, x!, out!, emission),
  argmax: (_e, [x], [out], emission) => emitReduce(2, x!, out!, emission),
  cumsum: emitCumsum,
  lookup: emitLookup,
  scatterAdd: emitScatterAdd,
  updateSlice: emitUpdateSlice,
  concat: emitConcat,
  pad: emitPad,
  pack: emitPack
}

const kernels: ReadonlySet<string> = new Set([...Object.keys(composites), "gelu", "geluBackward"])

/** Whether an equation needs no decomposition. Kernels calculate in f32: one that was asked to round every intermediate runs as its parts. */
export const hasKernel = (e: Equation): boolean => {
  const { calculation = "f32" } = e.params as Calculating
  return kernels.has(e.primitive.name) && calculation === "f32"
}

/** A single elementwise equation as a program of its own. */
const alone = (e: Equation): Program.Body => {
  const inputs = e.inputs.map((x) => input(x.type))
  return Program.body(
    inputs,
    build(
      e.primitive,
      inputs,
      e.params,
      e.outputs.map(() => "compute" as const)
    )
  )
}

export const emit: Emitter = (e, inputs, outputs, emission) => {
  const { name } = e.primitive
  if (name === "fused") {
    if (e.params.pattern === "pointwise") return emitPointwise(e.params.body, inputs, outputs, emission)
    if (!emitProduct(e.params.body, inputs, outputs, emission)) emitEach(e.params.body, inputs, outputs, emission)
    return
  }
  if (name === "constant") return Nest.fill(outputs[0]!, DType.store(e.params.dtype, e.params.value), emission)
  if (name === "iota" || isPointwise(e)) return emitPointwise(alone(e), inputs, outputs, emission)
  const emitter = composites[name] ?? core[name]
  if (emitter === undefined) {
    throw new CompileError({
      backend: "cpu",
      reason: "MissingKernel",
      detail: `no kernel for "${name}", and it has no decomposition`
    })
  }
  emitter(e, inputs, outputs, emission)
}

/** A fused body without a kernel of its own: its equations one by one. */
const emitEach = (
  body: Program.Body,
  inputs: ReadonlyArray<Plan.View>,
  outputs: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const views = new Map(body.inputs.map((x, i) => [x, inputs[i]!]))
  const places = new Map(body.outputs.map((x, i) => [x, outputs[i]!]))
  for (const e of body.equations) {
    const outs = e.outputs.map((o) => places.get(o) ?? emission.temporary(o.type.axes, o.type.dtype))
    emit(
      e,
      e.inputs.map((x) => views.get(x)!),
      outs,
      emission
    )
    e.outputs.forEach((o, i) => views.set(o, outs[i]!))
  }
}
