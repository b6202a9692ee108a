/**
 * A training step cut into stages. By the chain rule the derivatives of the chunks, composed, are those of the whole; so each chunk becomes a
 * forward and a backward program of one rank of its stage, a schedule says when they run, and one more program on the whole mesh does the update.
 */
import * as Axis from "../Axis.ts"
import { MeshMismatch, NoRule, PartitionError } from "../Errors.ts"
import * as Gradient from "../Gradient.ts"
import type { Layout, Placement } from "../Layout.ts"
import * as Layouts from "../Layout.ts"
import * as Mesh from "../Mesh.ts"
import * as Module from "../Module.ts"
import type { AnyTensor, Body, Tensor, TensorType } from "../Node.ts"
import { input } from "../Node.ts"
import { kindOf } from "../DType.ts"
import * as Optimizer from "../Optimizer.ts"
import type { Lowered, Options } from "../Partition.ts"
import { lateLayout, lower, together } from "../Partition.ts"
import * as Precision from "../Precision.ts"
import { cast, zeros } from "../primitives/algebra.ts"
import { place } from "../primitives/emit.ts"
import * as Program from "../Program.ts"
import * as Recompute from "../Recompute.ts"
import { simplify, simplifyBody } from "../Simplify.ts"
import type { BatchTypes, Config } from "../step/Config.ts"
import { isType } from "../step/Config.ts"
import { prepare } from "../step/Prepared.ts"
import type { Storage } from "../step/Storage.ts"
import { inOrder, update } from "../step/Update.ts"
import type { Pipeline, Rules, Strategy } from "../Strategy.ts"
import * as Tree from "../Tree.ts"
import type { Chunk, Given } from "./Cut.ts"
import { cut } from "./Cut.ts"
import type { Ticks } from "./Ticks.ts"
import * as Schedules from "./Ticks.ts"

/** Forward and backward of one chunk, as programs of one rank. */
export interface ChunkStep {
  readonly chunk: Chunk
  /** Boundary values, then given inputs, to boundary values (or sums), then residuals. */
  readonly forward: Lowered
  /** Kept inputs, residuals, cotangents to cotangents of boundary values, then gradients. */
  readonly backward: Lowered
  /** Outputs of the forward program before the residuals. */
  readonly outputs: number
  /** Which inputs of the forward program the backward program reads. */
  readonly kept: ReadonlyArray<number>
  /** Which boundary values have a cotangent, in their order. */
  readonly differentiable: ReadonlyArray<boolean>
  /** What the gradients are of. */
  readonly gradients: ReadonlyArray<Given>
}

/** How the layers of a parameter lie on the stages: `virtual` runs on each, one for every chunk that has some; null where all stages hold all. */
export interface Runs {
  readonly virtual: number
}

export interface PipelineStep {
  readonly pipeline: Pipeline
  readonly ticks: Ticks
  readonly stages: number
  readonly microbatches: number
  /** Gathers of parameters that are under way before their turn. */
  readonly prefetch: number
  /** The mesh of one stage. */
  readonly inner: Mesh.Mesh
  readonly mesh: Mesh.Mesh
  readonly chunks: ReadonlyArray<ChunkStep>
  /** parameters, state, averages; learning rate, step, loss scale; sums; gradients. To parameters, state, averages; metrics. */
  readonly update: Lowered
  readonly updateProgram: Program.Program
  readonly storage: Storage
  /** By leaf. */
  readonly runs: ReadonlyArray<Runs | null>
  readonly trained: ReadonlyArray<number>
  /** Paths of the batch's leaves. */
  readonly batch: ReadonlyArray<string>
  /** Number of tensors that live from step to step, of batch leaves and of sums. */
  readonly counts: { readonly held: number; readonly parameters: number; readonly batch: number; readonly sums: number }
  /** The types of a whole step's inputs: parameters, state, averages, batch, then the four scalars. */
  readonly inputs: ReadonlyArray<TensorType>
}

const mismatch = (problem: string, hint: string): never => {
  throw new PartitionError({ reason: new MeshMismatch({ problem, hint }) })
}

/** What is wrong with the pipeline of a strategy; throws. */
const check = (strategy: Strategy, pipeline: Pipeline): number => {
  const { meshAxis, schedule, virtualStages } = pipeline
  const stages = Mesh.countOf(strategy.mesh, meshAxis)
  if (strategy.mesh[0]?.[0] !== meshAxis)
    mismatch(
      `the stages of the pipeline are not the outermost mesh axis of ${Mesh.print(strategy.mesh)}`,
      `put "${meshAxis}" first`
    )
  if (virtualStages > 1 && schedule !== "interleaved")
    mismatch(
      `schedule ${schedule} with ${virtualStages} chunks a stage`,
      'use schedule "interleaved" or virtualStages 1'
    )
  if (schedule === "interleaved" && strategy.microbatches % stages !== 0)
    mismatch(
      `${strategy.microbatches} microbatches are not a multiple of ${stages} stages, which interleaving needs`,
      `use ${Math.max(1, Math.round(strategy.microbatches / stages)) * stages} microbatches, or schedule "1f1b"`
    )
  return stages
}

const without = (rules: Rules, meshAxis: string): Rules => rules.filter(([, m]) => m !== meshAxis)

/** The strategy within one stage. */
const within = (strategy: Strategy, meshAxis: string): Strategy => ({
  ...strategy,
  mesh: strategy.mesh.filter(([m]) => m !== meshAxis),
  compute: without(strategy.compute, meshAxis),
  parameters: without(strategy.parameters, meshAxis),
  gradients: without(strategy.gradients, meshAxis),
  optimizer: without(strategy.optimizer, meshAxis)
})

/** Builds a pipelined step. Throws `PartitionError`, `ProgramError` and `RecipeError`. */
export const build = <P extends Module.ParamTree, B extends BatchTypes>(
  config: Config<P, B>,
  strategy: Strategy,
  pipeline: Pipeline
): PipelineStep => {
  const { precision = Precision.f32 } = config
  const stages = check(strategy, pipeline)
  const { meshAxis, virtualStages } = pipeline
  const { optimizer, params, storage, ...loss } = prepare(config)
  if (loss.whole && strategy.microbatches > 1) {
    throw new PartitionError({
      reason: new NoRule({
        operation: "pipeline",
        problem: `a loss that compares all examples of the batch, over ${strategy.microbatches} microbatches`,
        hint: 'use 1 microbatch, or negatives "microbatch"'
      })
    })
  }
  const leaves = Module.leaves(params)
  const trained = leaves.flatMap((leaf, i) => (optimizer.trainable(leaf) ? [i] : []))
  const chunks = cut(loss.body, stages * virtualStages, meshAxis)
  const runs = leaves.map((leaf, i) => runsOf(leaf, chunks, i, stages))
  const regular = leaves.every((leaf, i) => !Axis.has(leaf.param.axes, "layers") || runs[i] !== null)
  const inner = within(strategy, meshAxis)
  const steps = agreed(
    chunks.map((chunk, c) => ({ chunk, parts: derive(chunk, c === chunks.length - 1, strategy, trained, precision) })),
    inner
  )
  const outer = regular ? strategy : { ...within(strategy, meshAxis), mesh: strategy.mesh }
  const ends = updateOf({ optimizer, precision, params, runs, trained, metrics: loss.metrics, steps, outer, meshAxis })
  const [types, shape] = Tree.flatten<TensorType, B>(config.batch, isType)
  const scalar = (dtype: "f32" | "u32"): TensorType => ({ axes: [], dtype })
  return {
    pipeline,
    ticks: Schedules.of(pipeline.schedule, { stages, microbatches: strategy.microbatches, virtualStages }),
    stages,
    microbatches: strategy.microbatches,
    prefetch: strategy.fsdp?.prefetch ?? 0,
    inner: inner.mesh,
    mesh: strategy.mesh,
    chunks: steps,
    update: ends.lowered,
    updateProgram: ends.program,
    storage,
    runs,
    trained,
    batch: Tree.paths(shape),
    counts: {
      held: storage.physical.length,
      parameters: leaves.length,
      batch: types.length,
      sums: 2 + loss.metrics.length
    },
    inputs: [
      ...storage.physical.map((h) => h.type),
      ...types,
      scalar("f32"),
      scalar("f32"),
      scalar("u32"),
      scalar("f32")
    ]
  }
}

/** How a stacked parameter lies on the stages, from the runs of its layers that chunks take. */
const runsOf = (leaf: Module.Leaf, chunks: ReadonlyArray<Chunk>, index: number, stages: number): Runs | null => {
  const layers = Axis.find(leaf.param.axes, "layers")
  if (layers === undefined) return null
  const found = chunks.flatMap((chunk, c) =>
    chunk.given.filter((g) => g.index === index).map((g) => ({ chunk: c, layers: g.layers }))
  )
  const size = found[0]?.layers?.size ?? 0
  const even = found.every(
    (f, i) =>
      f.layers !== null && f.layers.size === size && f.layers.start === i * size && f.chunk % stages === i % stages
  )
  return even && found.length * size === layers.size && found.length % stages === 0
    ? { virtual: found.length / stages }
    : null
}

interface Parts {
  /** Of the last chunk the outputs are sums. */
  readonly last: boolean
  readonly forward: Body
  readonly backward: Body
  readonly outputs: number
  readonly residuals: number
  readonly kept: ReadonlyArray<number>
  readonly differentiable: ReadonlyArray<boolean>
  readonly gradients: ReadonlyArray<Given>
}

/** Forward and backward of a chunk on one device. */
const derive = (
  chunk: Chunk,
  last: boolean,
  strategy: Strategy,
  trained: ReadonlyArray<number>,
  precision: Precision.Precision
): Parts => {
  const body = Recompute.apply(chunk.body, strategy.recompute)
  const floats = body.outputs.map((o, i) => kindOf(o.type.dtype) === "float" && (!last || i === 0))
  const parts = Gradient.split(body, floats)
  const used = body.inputs.map((x) => parts.used.has(x))
  const boundary = body.inputs.slice(0, chunk.boundary)
  const differentiable = boundary.map((x) => kindOf(x.type.dtype) === "float")
  const wrt = chunk.given.flatMap((given, i) =>
    trained.includes(given.index) ? [{ given, at: chunk.boundary + i }] : []
  )
  const gradients = wrt.map(({ at }) => {
    const x = body.inputs[at]!
    const dtype = precision.accumulation
    const c = parts.inputCotangents[at] ?? zeros({ axes: x.type.axes, dtype }, "gradient")
    return cast(place(c, "gradient") as Tensor<string>, dtype) as AnyTensor
  })
  const cotangents = boundary.flatMap((x, i) =>
    differentiable[i] ? [parts.inputCotangents[i] ?? zeros(x.type, x.role)] : []
  )
  const kept = body.inputs.filter((_, i) => used[i])
  const backward = Program.body([...kept, ...parts.residuals, ...parts.cotangents], [...cotangents, ...gradients])
  return {
    last,
    forward: simplifyBody(Program.body(body.inputs, [...parts.outputs, ...parts.residuals])),
    backward: simplifyBody(Precision.placeGradients(backward, precision)),
    outputs: parts.outputs.length,
    residuals: parts.residuals.length,
    kept: used.flatMap((u, i) => (u ? [i] : [])),
    differentiable,
    gradients: wrt.map(({ given }) => given)
  }
}

/** Lowers chunks; where gradients of one parameter come in several layouts, all take the one of their names. */
const agreed = (
  all: ReadonlyArray<{ readonly chunk: Chunk; readonly parts: Parts }>,
  inner: Strategy
): ReadonlyArray<ChunkStep> => {
  const first = all.map(({ chunk, parts }) => lowerChunk(chunk, parts, inner, () => false))
  const layouts = new Map<number, Layout>()
  const torn = new Set<number>()
  first.forEach((step) =>
    gradientLayouts(step).forEach(([index, layout]) => {
      const known = layouts.get(index)
      if (known !== undefined && !Layouts.same(known, layout)) torn.add(index)
      layouts.set(index, layout)
    })
  )
  if (torn.size === 0) return first
  return all.map(({ chunk, parts }) => lowerChunk(chunk, parts, inner, (index) => torn.has(index)))
}

const gradientLayouts = (step: ChunkStep): ReadonlyArray<readonly [index: number, layout: Layout]> => {
  const skipped = step.differentiable.filter(Boolean).length
  return step.gradients.map((g, i) => [g.index, step.backward.outputLayouts[skipped + i]!])
}

/** Collectives of one kind travel together, as in a step without stages. */
const lowered = (body: Body, strategy: Strategy, options: Options): Lowered =>
  together(lower(body, strategy, options), strategy)

const lowerChunk = (chunk: Chunk, parts: Parts, inner: Strategy, home: (index: number) => boolean): ChunkStep => {
  const { differentiable, gradients, kept, last, outputs } = parts
  const forward = lowered(parts.forward, inner, {
    padded: true,
    outputs: (i, x, scope) => (i < outputs && !last ? scope.home(x) : lateLayout(x, scope))
  })
  const before = kept.length + parts.residuals
  const inputs = parts.backward.inputs.map((x, i): Layout => {
    if (i < kept.length) return forward.inputLayouts[kept[i]!]!
    if (i < before) return forward.outputLayouts[outputs + i - kept.length]!
    return Layouts.named(x.type, x.role, inner, { padded: true })
  })
  const skipped = differentiable.filter(Boolean).length
  const backward = lowered(parts.backward, inner, {
    padded: true,
    inputs,
    outputs: (i, x, scope) =>
      i < skipped || home(gradients[i - skipped]!.index) ? scope.home(x) : lateLayout(x, scope)
  })
  return { chunk, forward, backward, outputs, kept, differentiable, gradients }
}

interface UpdateGiven {
  readonly optimizer: Optimizer.Optimizer
  readonly precision: Precision.Precision
  readonly params: Module.ParamTree
  readonly runs: ReadonlyArray<Runs | null>
  readonly trained: ReadonlyArray<number>
  readonly metrics: ReadonlyArray<string>
  readonly steps: ReadonlyArray<ChunkStep>
  readonly outer: Strategy
  readonly meshAxis: string
}

/** The axes of a stacked parameter with its runs as an axis of their own. */
const runAxes = (axes: Axis.Axes, runs: Runs | null): Axis.Axes =>
  runs === null || runs.virtual === 1
    ? axes
    : axes.flatMap((a) =>
        a.name === "layers" ? [Axis.make("virtual", runs.virtual), Axis.make("layers", a.size / runs.virtual)] : [a]
      )

/** The update on the whole mesh: gradients of layers are those of their stage, all others are parts of a sum over the stages. */
const updateOf = (given: UpdateGiven) => {
  const { meshAxis, metrics, optimizer, outer, params, precision, runs, steps, trained } = given
  let at = 0
  const inRuns = Module.mapParams(params, (p) => ({ ...p, axes: runAxes(p.axes, runs[at++]!) }))
  const own = Module.leaves(inRuns)
  const parameters = own.map((leaf) => input({ axes: leaf.param.axes, dtype: optimizer.stored }, "parameter"))
  const gradients = trained.map((i) => input({ axes: own[i]!.param.axes, dtype: precision.accumulation }, "gradient"))
  const state = Optimizer.inputs(optimizer, inRuns)
  const scalar = () => input({ axes: [], dtype: "f32" })
  const [learningRate, step, lossScale] = [scalar(), scalar(), scalar()]
  const sums = Array.from({ length: 2 + metrics.length }, scalar)
  const { leafByLeaf, results } = update<unknown>({
    optimizer,
    precision,
    params: inRuns,
    parameters,
    gradients,
    state,
    sums,
    metrics,
    learningRate,
    step,
    lossScale
  })
  const held = { parameters, optimizer: state.optimizer, ...(state.ema === null ? {} : { ema: state.ema }) }
  const inputs = { held, learningRate, step, lossScale, sums, gradients }
  const program = inOrder(simplify(Program.make(inputs, results)), leafByLeaf)

  const over = (stage: Placement, layout: Layout): Layout => new Map([[meshAxis, stage], ...layout])
  const found = new Map(steps.flatMap(gradientLayouts))
  const last = steps[steps.length - 1]!
  const layouts = new Map<AnyTensor, Layout>([
    ...sums.map((x, i) => [x, over("sum", last.forward.outputLayouts[i]!)] as const),
    ...trained.map((leaf, i) => {
      const split = runs[leaf] !== null && outer.parameters.some(([axis, m]) => axis === "layers" && m === meshAxis)
      const none = Layouts.whole(outer.mesh.slice(1))
      return [gradients[i]!, over(split ? "split:layers" : "sum", found.get(leaf) ?? none)] as const
    })
  ])
  const onMesh = lowered(program, outer, {
    padded: true,
    inputs: program.inputs.map((x) => layouts.get(x) ?? Layouts.named(x.type, x.role, outer, { padded: true }))
  })
  return { program: program as Program.Program, lowered: onMesh }
}
