/**
 * The meaning of programs: float64 loops, one device or lockstep ranks. Slow on purpose, and never edited to make another backend pass.
 */
import * as Result from "effect/Result"
import * as Axis from "./Axis.ts"
import * as DType from "./DType.ts"
import { InvalidOperation, ProgramError } from "./Errors.ts"
import type { HostArray } from "./HostArray.ts"
import * as Mesh from "./Mesh.ts"
import type { AnyTensor, Body, Equation, Lockstep, TensorType } from "./Node.ts"
import { decomposition } from "./primitives/composite.ts"

/** 16-bit floats are rounded, integers wrap: a tensor cannot hold what its storage type cannot. f32 stays a double. */
const stored = (x: HostArray, type: TensorType): HostArray =>
  type.dtype === "f32"
    ? { axes: x.axes, dtype: "f32", data: x.data }
    : { axes: x.axes, dtype: type.dtype, data: x.data.map((v) => DType.store(type.dtype, v)) }

/** Called after every equation; for counterexamples that name the first differing equation. */
export type Observer = (equation: Equation, results: ReadonlyArray<Lockstep>) => void

/** Values of the outputs, one array per rank of the mesh. Every input holds one array per rank. */
export const lockstep = (
  body: Body,
  inputs: ReadonlyArray<Lockstep>,
  mesh: Mesh.Mesh,
  observe?: Observer
): ReadonlyArray<Lockstep> => {
  const env = new Map<AnyTensor, Lockstep>(body.inputs.map((x, i) => [x, inputs[i]!]))
  const call = (inner: Body, xs: ReadonlyArray<Lockstep>) => lockstep(inner, xs, mesh, observe)
  for (const e of body.equations) {
    const xs = e.inputs.map((x) => env.get(x)!)
    const types = e.outputs.map((o) => o.type)
    const results = one(e, xs, types, mesh, call)
    e.outputs.forEach((o, i) => env.set(o, results[i]!))
    observe?.(e, results)
  }
  return body.outputs.map((o) => env.get(o)!)
}

const one = (
  e: Equation,
  xs: ReadonlyArray<Lockstep>,
  types: ReadonlyArray<TensorType>,
  mesh: Mesh.Mesh,
  call: (inner: Body, xs: ReadonlyArray<Lockstep>) => ReadonlyArray<Lockstep>
): ReadonlyArray<Lockstep> => {
  const { meaning } = e.primitive
  if (meaning.kind === "region")
    return meaning.evaluate(xs, e.params, call, types).map((l, i) => l.map((a) => stored(a, types[i]!)))
  if (meaning.kind === "composite") {
    return call(
      decomposition(
        e.primitive,
        e.inputs.map((x) => x.type),
        e.params
      ),
      xs
    )
  }
  const all = Array.from({ length: Mesh.rankCount(mesh) }, (_, r) => {
    const own = (rank: number) => xs.map((x) => x[rank]!)
    if (meaning.kind === "core") return meaning.evaluate(own(r), e.params, types)
    const { meshAxis } = e.params
    return meaning.evaluate(Mesh.peers(mesh, r, meshAxis).map(own), Mesh.coordinate(mesh, r, meshAxis), e.params)
  })
  return types.map((t, i) => all.map((a) => stored(a[i]!, t)))
}

/** Values of the outputs on a single device. */
export const run = (
  body: Body,
  inputs: ReadonlyArray<HostArray>,
  observe?: Observer
): Result.Result<ReadonlyArray<HostArray>, ProgramError> => {
  const wrong = body.inputs.findIndex(
    (x, i) => inputs[i] === undefined || !Axis.equal(x.type.axes, inputs[i]!.axes) || x.type.dtype !== inputs[i]!.dtype
  )
  if (wrong >= 0 || inputs.length !== body.inputs.length) {
    const expected =
      wrong < 0
        ? `${body.inputs.length} inputs`
        : `${body.inputs[wrong]!.type.dtype}${Axis.print(body.inputs[wrong]!.type.axes)}`
    const found =
      wrong < 0 || inputs[wrong] === undefined
        ? `${inputs.length} inputs`
        : `${inputs[wrong]!.dtype}${Axis.print(inputs[wrong]!.axes)}`
    return Result.fail(
      new ProgramError({
        reason: new InvalidOperation({
          operation: "run",
          problem: `input ${Math.max(0, wrong)}: expected ${expected}, found ${found}`
        }),
        path: "",
        source: ""
      })
    )
  }
  const outputs = lockstep(
    body,
    inputs.map((x) => [x]),
    Mesh.single,
    observe
  )
  return Result.succeed(outputs.map((x) => x[0]!))
}

/** `run` that throws its error. */
export const runUnsafe = (body: Body, inputs: ReadonlyArray<HostArray>): ReadonlyArray<HostArray> =>
  Result.getOrThrow(run(body, inputs))
