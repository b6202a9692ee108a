/** A pipelined step on simulated ranks: the ticks of all stages in the order of their clock, in float64. */
import * as Axis from "../Axis.ts"
import * as Evaluate from "../Evaluate.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import * as Layout from "../Layout.ts"
import * as Mesh from "../Mesh.ts"
import type { AnyTensor, Lockstep, TensorType } from "../Node.ts"
import type { Given } from "./Cut.ts"
import type { ChunkStep, PipelineStep } from "./PipelineStep.ts"
import type { Timed } from "./Ticks.ts"
import { timeline } from "./Ticks.ts"

/** Examples of one microbatch: those whose number leaves the rest `index`. */
export const microbatch = (x: HostArray, index: number, count: number): HostArray => {
  if (!Axis.has(x.axes, "batch") || count === 1) return x
  const axes = x.axes.flatMap((a) =>
    a.name === "batch" ? [Axis.make("batch", a.size / count), Axis.make("micro", count)] : [a]
  )
  return Host.at({ axes, dtype: x.dtype, data: x.data }, "micro", index)
}

/** The same elements with the layers of a parameter as runs of the stages, or the other way. */
const inRuns = (x: HostArray, axes: Axis.Axes): HostArray => ({ axes, dtype: x.dtype, data: x.data })

const plus = (x: Lockstep, y: Lockstep): Lockstep =>
  x.map((a, r) => {
    const b = Host.reorder(y[r]!, a.axes)
    return { ...a, data: a.data.map((v, k) => v + b.data[k]!) }
  })

export interface Outcome {
  readonly outputs: ReadonlyArray<HostArray>
  readonly disagreement: number
}

/** Called with every value that a tick computes; with those of the update, and what it is given, under null. */
export type Observer = (tick: Timed | null, tensor: AnyTensor, value: Lockstep) => void

/** Inputs and outputs as those of the step on one device, but stored as the strategy stores them. */
export const run = (step: PipelineStep, inputs: ReadonlyArray<HostArray>, observe: Observer = () => {}): Outcome => {
  const { batch, held, parameters, sums } = step.counts
  const given = [...inputs.slice(0, parameters), ...inputs.slice(held, held + batch), ...inputs.slice(-2)]
  const [learningRate, number, , lossScale] = inputs.slice(-4) as [HostArray, HostArray, HostArray, HostArray]
  const kept = new Map<string, ReadonlyArray<Lockstep>>()
  const sent = new Map<string, ReadonlyArray<Lockstep>>()
  const totals: Array<Lockstep> = []
  /** By stage, leaf and chunk of the stage. */
  const gradients = new Map<string, Lockstep>()
  const clock = timeline(step.ticks, step.pipeline)
  if (clock === null) throw new Error("the schedule waits for itself")
  const every = (x: HostArray): Lockstep => Array.from({ length: Mesh.rankCount(step.inner) }, () => x)
  const last = step.chunks.length - 1

  const watch =
    (tick: Timed | null): Evaluate.Observer =>
    (e, results) =>
      e.outputs.forEach((o, i) => observe(tick, o, results[i]!))

  for (const tick of clock.ticks) {
    const { chunk, microbatch: m, pass, stage } = tick
    const c = chunk * step.stages + stage
    const own = step.chunks[c]!
    if (pass === "forward") {
      const parts = own.chunk.given.map((g, i) => {
        const x = microbatch(layersOf(given[g.index]!, g), m, step.microbatches)
        return Layout.scatter(x, own.forward.inputLayouts[own.chunk.boundary + i]!, step.inner)
      })
      const xs = [...(sent.get(`forward ${c} ${m}`) ?? []), ...parts]
      const results = Evaluate.lockstep(own.forward.body, xs, step.inner, watch(tick))
      kept.set(`${c} ${m}`, [...own.kept.map((i) => xs[i]!), ...results.slice(own.outputs)])
      const values = results.slice(0, own.outputs)
      if (c < last) sent.set(`forward ${c + 1} ${m}`, values)
      else values.forEach((x, i) => (totals[i] = totals[i] === undefined ? x : plus(totals[i], x)))
      continue
    }
    const cotangents = c === last ? [every(lossScale)] : sent.get(`backward ${c} ${m}`)!
    const results = Evaluate.lockstep(
      own.backward.body,
      [...kept.get(`${c} ${m}`)!, ...cotangents],
      step.inner,
      watch(tick)
    )
    kept.delete(`${c} ${m}`)
    const skipped = own.differentiable.filter(Boolean).length
    if (c > 0) sent.set(`backward ${c - 1} ${m}`, results.slice(0, skipped))
    own.gradients.forEach((g, i) => {
      const key = `${stage} ${g.index} ${g.layers === null ? 0 : chunk}`
      const before = gradients.get(key)
      const found = results[skipped + i]!
      gradients.set(key, before === undefined ? found : plus(before, found))
    })
  }
  const end = ends(step, inputs.slice(0, held), [learningRate, number, lossScale], totals.slice(0, sums), gradients)
  end.forEach((x, i) => observe(null, step.update.body.inputs[i]!, x))
  return finish(step, held, Evaluate.lockstep(step.update.body, end, step.mesh, watch(null)))
}

const layersOf = (x: HostArray, { layers }: Given): HostArray =>
  layers === null ? x : Host.slice(x, "layers", layers.start, layers.size)

/** What the update is given: everything that lives, scalars, and of sums and gradients what each stage has. */
const ends = (
  step: PipelineStep,
  held: ReadonlyArray<HostArray>,
  scalars: ReadonlyArray<HostArray>,
  totals: ReadonlyArray<Lockstep>,
  gradients: ReadonlyMap<string, Lockstep>
): ReadonlyArray<Lockstep> => {
  const { inputLayouts } = step.update
  const program = step.updateProgram
  const whole = [...held, ...scalars].map((x, i) =>
    Layout.scatter(inRuns(x, program.inputs[i]!.type.axes), inputLayouts[i]!, step.mesh)
  )
  const first = whole.length
  const sums = totals.map((x, i) =>
    stagesOf(step, program.inputs[first + i]!.type, inputLayouts[first + i]!, (stage) =>
      stage === step.stages - 1 ? x : null
    )
  )
  const parts = step.trained.map((leaf, i) => {
    const at = first + sums.length + i
    return stagesOf(step, program.inputs[at]!.type, inputLayouts[at]!, (stage) =>
      gradientOf(step, gradients, leaf, stage)
    )
  })
  return [...whole, ...sums, ...parts]
}

const finish = (step: PipelineStep, held: number, results: ReadonlyArray<Lockstep>): Outcome => {
  const program = step.updateProgram
  const all = results.map((x, i) => Layout.collect(x, step.update.outputLayouts[i]!, step.mesh))
  return {
    outputs: all.map(({ array }, i) => {
      if (i >= held) return array
      const want = program.outputs[i]!.type.axes
      return inRuns(Host.reorder(array, want), step.inputs[i]!.axes)
    }),
    disagreement: all.reduce((worst, x) => Math.max(worst, x.disagreement), 0)
  }
}

/** One array per rank of the whole mesh; where a stage has nothing, zeros. */
const stagesOf = (
  step: PipelineStep,
  type: TensorType,
  layout: Layout.Layout,
  of: (stage: number) => Lockstep | null
): Lockstep => {
  const local = Layout.localType(type, layout, step.mesh)
  const zero = { axes: local.axes, dtype: type.dtype, data: new Float64Array(Axis.count(local.axes)) }
  return Array.from({ length: step.stages }, (_, stage) => stage).flatMap(
    (stage) => of(stage) ?? Array.from({ length: Mesh.rankCount(step.inner) }, () => zero)
  )
}

/** What a stage has of the gradient of a leaf: its runs of layers one after another, or its share of the sum. */
const gradientOf = (
  step: PipelineStep,
  gradients: ReadonlyMap<string, Lockstep>,
  leaf: number,
  stage: number
): Lockstep | null => {
  const runs = step.runs[leaf]
  const layers = step.inputs[leaf]!.axes.find((a) => a.name === "layers")
  if (layers === undefined) return gradients.get(`${stage} ${leaf} 0`) ?? null
  if (runs === null || runs === undefined) return wholeStack(step, gradients, leaf, stage, layers.size)
  const chunks = chunksOf(step, leaf, stage).map(({ chunk }) => gradients.get(`${stage} ${leaf} ${chunk}`)!)
  if (runs.virtual === 1) return chunks[0]!
  return Array.from({ length: chunks[0]!.length }, (_, r) =>
    Host.stack(
      chunks.map((x) => x[r]!),
      Axis.make("virtual", runs.virtual),
      chunks[0]![r]!
    )
  )
}

/** The chunks of a stage that use a leaf. */
const chunksOf = (
  step: PipelineStep,
  leaf: number,
  stage: number
): ReadonlyArray<{ readonly chunk: number; readonly given: Given }> =>
  step.chunks.flatMap((own: ChunkStep, c) =>
    c % step.stages !== stage
      ? []
      : own.gradients.filter((g) => g.index === leaf).map((given) => ({ chunk: Math.floor(c / step.stages), given }))
  )

/** Runs of layers at their place in the whole stack, zeros elsewhere. */
const wholeStack = (
  step: PipelineStep,
  gradients: ReadonlyMap<string, Lockstep>,
  leaf: number,
  stage: number,
  size: number
): Lockstep | null => {
  const found = chunksOf(step, leaf, stage)
  if (found.length === 0) return null
  const ranks = Mesh.rankCount(step.inner)
  return Array.from({ length: ranks }, (_, r) => {
    const [first] = found
    const like = gradients.get(`${stage} ${leaf} ${first!.chunk}`)![r]!
    const axes = like.axes.map((a) => (a.name === "layers" ? Axis.make("layers", size) : a))
    const data = new Float64Array(Axis.count(axes))
    const stride = Host.strideOf(axes, "layers")
    for (const { chunk, given } of found) {
      const part = Host.reorder(gradients.get(`${stage} ${leaf} ${chunk}`)![r]!, like.axes)
      const to = Host.offsets(axes, part.axes)
      const base = (given.layers?.start ?? 0) * stride
      for (let k = 0; k < to.length; k++) data[to[k]! + base] = part.data[k]!
    }
    return { axes, dtype: like.dtype, data }
  })
}
