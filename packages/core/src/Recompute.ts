/** Which intermediates are not kept for the backward pass: a policy, and the pass that puts regions around what is computed again. */
import * as Axis from "./Axis.ts"
import { RecipeError } from "./Errors.ts"
import type { AnyTensor, Body, Equation } from "./Node.ts"
import { build, input } from "./Node.ts"
import { addP } from "./primitives/algebra.ts"
import { attentionP } from "./primitives/attention.ts"
import { concatP, mergeP, sliceP, splitP } from "./primitives/axes.ts"
import type { RecomputeParams, ScanParams } from "./primitives/control.ts"
import { recomputeP, scanP } from "./primitives/control.ts"
import * as Program from "./Program.ts"

/**
 * none: all intermediates are kept. full, uniform: of every `layers` layers only the input is kept. full, block: the first `layers` layers of a
 * stack (of every pipeline stage) run again each by itself, the others keep everything. selective: only attention, from scores to values, runs again.
 * @source Megatron-LM@core_v0.4.0 megatron/arguments.py recompute-granularity, recompute-method; arXiv:2205.05198, section 5
 */
export type Policy =
  | { readonly kind: "none" }
  | { readonly kind: "full"; readonly method?: "uniform" | "block"; readonly layers?: number }
  | { readonly kind: "selective" }

export const none: Policy = { kind: "none" }
/** Every layer by itself. */
export const full: Policy = { kind: "full" }
export const selective: Policy = { kind: "selective" }

/** What is wrong with a policy, or null. */
export const problem = (policy: Policy): RecipeError | null => {
  const layers = policy.kind === "full" ? (policy.layers ?? 1) : 1
  return Number.isInteger(layers) && layers >= 1
    ? null
    : new RecipeError({
        key: "strategy.recompute.layers",
        problem: `${layers} layers cannot run again together`,
        hint: "a whole number of at least 1 is needed"
      })
}

/** The forward program with regions around what the policy does not keep; before derivatives. Meaning and interface stay. */
export const apply = (body: Body, policy: Policy): Body => {
  if (policy.kind === "none") return body
  if (policy.kind === "selective") return onStacks(body, (e, inputs) => selectiveScan(e, inputs))
  const { layers = 1, method = "uniform" } = policy
  return onStacks(body, (e, inputs) => (method === "uniform" ? uniform(e, inputs, layers) : block(e, inputs, layers)))
}

/** Rewrites every stack of layers, those in regions too. */
const onStacks = (
  body: Body,
  rewrite: (e: Equation, inputs: ReadonlyArray<AnyTensor>) => ReadonlyArray<AnyTensor>
): Body =>
  Program.map(body, (e, inputs) => (e.primitive === scanP && e.params.axis === "layers" ? rewrite(e, inputs) : null))

/** A region that holds a copy of the body. */
const region = (body: Body, inputs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> => {
  const inside = inputs.map((x) => input(x.type, x.role))
  const params: RecomputeParams = { body: Program.body(inside, Program.inline(body, inside)) }
  return build(
    recomputeP,
    inputs,
    params,
    body.outputs.map((o) => o.role)
  )
}

const scanOf = (p: ScanParams, inputs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> =>
  build(
    scanP,
    inputs,
    p,
    p.body.outputs.map((o) => o.role)
  )

/** The body with all of it in a region. */
const wrapped = (body: Body): Body => Program.body(body.inputs, region(body, body.inputs))

const selectiveScan = (e: Equation, inputs: ReadonlyArray<AnyTensor>): ReadonlyArray<AnyTensor> => {
  const p = e.params as ScanParams
  const body = Program.map(p.body, (inner, xs) => {
    if (inner.primitive !== attentionP) return null
    const own = inner.inputs.map((x) => input(x.type, x.role))
    const alone = build(
      attentionP,
      own,
      inner.params,
      inner.outputs.map((o) => o.role)
    )
    return region(Program.body(own, alone), xs)
  })
  return scanOf({ ...p, body }, inputs)
}

/** What a run of layers gives, so that runs can follow each other. */
interface Run {
  readonly carried: ReadonlyArray<AnyTensor>
  readonly stacked: ReadonlyArray<AnyTensor>
  readonly summed: ReadonlyArray<AnyTensor>
}

const runOf = (p: ScanParams, all: ReadonlyArray<AnyTensor>): Run => ({
  carried: all.slice(0, p.carried),
  stacked: all.slice(p.carried, p.carried + p.stacked),
  summed: all.slice(p.carried + p.stacked)
})

/** Layers start .. start + size of an operand, in its own role. */
const layersOf = (x: AnyTensor, start: number, size: number): AnyTensor =>
  Axis.find(x.type.axes, "layers")!.size === size
    ? x
    : build(sliceP, [x], { axis: "layers", to: "layers", start, size }, x.role)[0]!

/** Layers start .. start + size with another body, from the values carried so far. */
const section = (
  p: ScanParams,
  inputs: ReadonlyArray<AnyTensor>,
  carried: ReadonlyArray<AnyTensor>,
  [start, size]: readonly [number, number],
  run: (p: ScanParams, inputs: ReadonlyArray<AnyTensor>) => ReadonlyArray<AnyTensor>
): Run => {
  const each = inputs.slice(p.carried, p.carried + p.each).map((x) => layersOf(x, start, size))
  const sized = { ...p, size }
  return runOf(sized, run(sized, [...carried, ...each, ...inputs.slice(p.carried + p.each)]))
}

/** Two runs, the second from what the first carried. */
const joined = (first: Run, second: Run): ReadonlyArray<AnyTensor> => [
  ...second.carried,
  ...first.stacked.map((x, i) => {
    const y = second.stacked[i]!
    // The axis that parts have of their own may be that of the whole.
    return build(concatP, [x, y], { axes: ["layers", "layers"], axis: "layers" }, x.role)[0]!
  }),
  ...first.summed.map((x, i) => build(addP, [x, second.summed[i]!], {}, x.role)[0]!)
]

const again = (p: ScanParams, inputs: ReadonlyArray<AnyTensor>) => scanOf({ ...p, body: wrapped(p.body) }, inputs)

const block = (e: Equation, inputs: ReadonlyArray<AnyTensor>, layers: number): ReadonlyArray<AnyTensor> => {
  const p = e.params as ScanParams
  const carried = inputs.slice(0, p.carried)
  if (layers >= p.size) return again(p, inputs)
  const first = section(p, inputs, carried, [0, layers], again)
  return joined(first, section(p, inputs, first.carried, [layers, p.size - layers], scanOf))
}

/** Chunks of `layers` layers, the last one shorter where they do not divide. */
const uniform = (e: Equation, inputs: ReadonlyArray<AnyTensor>, layers: number): ReadonlyArray<AnyTensor> => {
  const p = e.params as ScanParams
  if (layers === 1) return again(p, inputs)
  const carried = inputs.slice(0, p.carried)
  const rest = p.size % layers
  const whole = p.size - rest
  const short = (from: ReadonlyArray<AnyTensor>, start: number) =>
    section(p, inputs, from, [start, rest], (own, xs) => region(Program.body(xs, scanOf(own, xs)), xs))
  if (whole === 0) return allOf(short(carried, 0))
  const first = section(p, inputs, carried, [0, whole], (own, xs) => chunked(own, xs, layers))
  return rest === 0 ? allOf(first) : joined(first, short(first.carried, whole))
}

const allOf = ({ carried, stacked, summed }: Run): ReadonlyArray<AnyTensor> => [...carried, ...stacked, ...summed]

/** A scan over chunks whose body is a region around the scan over the layers of one. */
const chunked = (p: ScanParams, inputs: ReadonlyArray<AnyTensor>, layers: number): ReadonlyArray<AnyTensor> => {
  const chunks = inputs
    .slice(p.carried, p.carried + p.each)
    .map((x) => build(splitP, [x], { axis: "layers", outer: "chunks", inner: "layers", size: layers }, x.role)[0]!)
  const given = [...inputs.slice(0, p.carried), ...chunks, ...inputs.slice(p.carried + p.each)]
  const inside = given.map((x) => input({ axes: Axis.without(x.type.axes, ["chunks"]), dtype: x.type.dtype }, x.role))
  const inner = Program.body(inside, scanOf({ ...p, size: layers }, inside))
  const outer: ScanParams = { ...p, axis: "chunks", size: p.size / layers, body: wrapped(inner) }
  const { carried, stacked, summed } = runOf(outer, scanOf(outer, given))
  return [
    ...carried,
    ...stacked.map((x) => build(mergeP, [x], { axis: "layers", outer: "chunks", inner: "layers" }, x.role)[0]!),
    ...summed
  ]
}
