/** Models are records: declarations of parameters, and a pure function of parameters and input. */
import * as Axis from "./Axis.ts"
import type { DType } from "./DType.ts"
import { invalid, ProgramError } from "./Errors.ts"
import * as Init from "./Init.ts"
import type { AnyTensor, Tensor } from "./Node.ts"
import { input } from "./Node.ts"
import * as Program from "./Program.ts"
import * as Random from "./Random.ts"
import { cast } from "./primitives/algebra.ts"
import { iota } from "./primitives/index.ts"
import { scan } from "./primitives/control.ts"
import * as Tree from "./Tree.ts"

/** The declaration of one parameter. `decay`: whether weight decay applies by default. */
export interface Param<A extends string = string> {
  readonly axes: ReadonlyArray<Axis.Axis<A>>
  readonly init: Init.Init
  readonly decay: boolean
  /** Axes added by stacks. */
  readonly repeated: ReadonlyArray<string>
}

export type ParamTree = Param<any> | { readonly [key: string]: ParamTree }

/** Parameters as tensors, shaped as declared. */
export type Tensors<P> = P extends Param<infer A> ? Tensor<A> : { readonly [K in keyof P]: Tensors<P[K]> }

/** What a call knows besides its input. */
export interface Call {
  /** Dropout, drop path and the like act only in training. */
  readonly train: boolean
  readonly key: Random.Key | null
}

export const evaluation: Call = { train: false, key: null }
export const training = (key: Random.Key): Call => ({ train: true, key })

/** The same call with the key of a part, by name. */
export const within = (call: Call, name: string): Call =>
  call.key === null ? call : { ...call, key: Random.child(call.key, name) }

export interface Module<P extends ParamTree, In, Out> {
  readonly params: P
  readonly apply: (params: Tensors<P>, input: In, call: Call) => Out
}

export const make = <P extends ParamTree, In, Out>(
  params: P,
  apply: (params: Tensors<P>, input: In, call: Call) => Out
): Module<P, In, Out> => ({ params, apply })

/** `param({ embed: 16, mlp: 64 }, Init.xavierUniform("embed"))`: axes in memory order. */
export const param = <const S extends Readonly<Record<string, number>>>(
  sizes: S,
  init: Init.Init,
  options: { readonly decay?: boolean } = {}
): Param<keyof S & string> => ({
  axes: Object.entries(sizes).map(([name, size]) => Axis.make(name as keyof S & string, size)),
  init,
  decay: options.decay ?? true,
  repeated: []
})

export const isParam = (x: unknown): x is Param =>
  typeof x === "object" && x !== null && "axes" in x && "init" in x && Array.isArray(x.axes)

/** Calls a part; an error inside names its path. */
export const run = <P extends ParamTree, In, Out>(
  part: Module<P, In, Out>,
  name: string,
  params: Tensors<P>,
  input: In,
  call: Call
): Out => {
  try {
    return part.apply(params, input, within(call, name))
  } catch (error) {
    if (error instanceof ProgramError) {
      throw new ProgramError({
        reason: error.reason,
        path: error.path === "" ? name : `${name}/${error.path}`,
        source: error.source
      })
    }
    throw error
  }
}

/** What one layer of a stack receives: the value carried through, its index (u32 scalar) and its constants (scalars). */
export interface Layer<A extends string> {
  readonly value: Tensor<A>
  readonly index: Tensor<never, "int">
  readonly constants: Readonly<Record<string, Tensor<never>>>
}

/** What one layer gives: the value for the next, and intermediates to hand out, by name. */
export interface LayerResult<A extends string> {
  readonly value: Tensor<A>
  readonly captured: Readonly<Record<string, AnyTensor>>
}

export interface StackInput<A extends string> {
  readonly value: Tensor<A>
  /** One number a layer: rates of drop path, layer-wise factors. */
  readonly constants?: Readonly<Record<string, Tensor<"layers">>>
}

/**
 * `size` copies of a block, one after another, as a scan over the axis "layers", which every parameter receives. Passes find the scan: recomputation
 * and stage cuts are no business of models. Captured intermediates come back with the axis "layers".
 */
export const stack = <P extends ParamTree, A extends string>(
  block: Module<P, Layer<A>, LayerResult<A>>,
  size: number
): Module<
  Stacked<P>,
  StackInput<A>,
  { readonly value: Tensor<A>; readonly captured: Readonly<Record<string, AnyTensor>> }
> => {
  if (!Number.isInteger(size) || size < 0) invalid("stack", `${size} layers; a whole number of at least 0 is needed`)
  const params = mapParams(block.params, (p) => ({
    ...p,
    axes: [Axis.make("layers", size), ...p.axes],
    repeated: [...p.repeated, "layers"]
  })) as Stacked<P>
  return make(params, (tensors, { constants = {}, value }, call) => {
    if (size === 0) return { value, captured: {} }
    const [leaves, shape] = Tree.flatten<AnyTensor, unknown>(tensors, Tree.isTensorLeaf)
    const names = Object.keys(constants)
    const keyed =
      call.key === null
        ? []
        : [call.key.seed, call.key.stream, ...(call.key.example === null ? [] : [call.key.example])]
    let captured: ReadonlyArray<string> = []
    const results = scan(
      "layers",
      {
        carried: [value],
        each: [iota("layers", size, "u32"), ...names.map((n) => constants[n]!), ...leaves],
        fixed: keyed
      },
      (inside) => {
        const [index, ...rest] = inside.each
        const [seed, stream, example] = inside.fixed
        const key =
          call.key === null
            ? null
            : Random.at(
                {
                  seed: seed as Tensor<never, "int">,
                  stream: stream as Tensor<never, "int">,
                  example: example ?? null
                },
                index as Tensor<never, "int">
              )
        const result = block.apply(
          Tree.unflatten(shape, rest.slice(names.length)) as Tensors<P>,
          {
            value: inside.carried[0] as Tensor<A>,
            index: index as Tensor<never, "int">,
            constants: Object.fromEntries(names.map((n, i) => [n, rest[i] as Tensor<never>]))
          },
          { ...call, key }
        )
        captured = Object.keys(result.captured)
        return { carried: [result.value], stacked: captured.map((n) => result.captured[n]!), summed: [] }
      }
    )
    return {
      value: results.carried[0] as Tensor<A>,
      captured: Object.fromEntries(captured.map((n, i) => [n, results.stacked[i]!]))
    }
  })
}

/** Parameters with one more axis, "layers". */
export type Stacked<P> = P extends Param<infer A> ? Param<A | "layers"> : { readonly [K in keyof P]: Stacked<P[K]> }

/** The same tree with other declarations. */
export const mapParams = (tree: ParamTree, f: (p: Param) => Param): ParamTree =>
  isParam(tree) ? f(tree) : Object.fromEntries(Object.entries(tree).map(([k, v]) => [k, mapParams(v as ParamTree, f)]))

export interface Leaf {
  /** "blocks/attention/query" */
  readonly path: string
  readonly param: Param
}

/** Every parameter with its path, in declaration order. */
export const leaves = (params: ParamTree): ReadonlyArray<Leaf> => {
  const [all, shape] = Tree.flatten<Param, ParamTree>(params, isParam)
  const paths = Tree.paths(shape)
  return all.map((param, i) => ({ path: paths[i]!, param }))
}

/** Number of parameter elements. */
export const count = (params: ParamTree): number => leaves(params).reduce((n, l) => n + Axis.count(l.param.axes), 0)

/** Parameters as program inputs, f32 unless they are stored otherwise. */
export const inputs = <P extends ParamTree>(params: P, dtype: DType = "f32"): Tensors<P> => {
  const [all, shape] = Tree.flatten<Param, ParamTree>(params, isParam)
  return Tree.unflatten(
    shape,
    all.map((p) => input({ axes: p.axes, dtype }, "parameter"))
  ) as Tensors<P>
}

/**
 * A program from a seed (u32 scalar) to all parameters, f32 unless they are stored otherwise. Each draws from a stream named by its path, so adding one
 * changes no other.
 */
export const init = <P extends ParamTree>(
  params: P,
  dtype: DType = "f32"
): Program.Program<{ readonly seed: AnyTensor }, Tensors<P>> => {
  const [all, shape] = Tree.flatten<Param, ParamTree>(params, isParam)
  const paths = Tree.paths(shape)
  const seed = input({ axes: [], dtype: "u32" })
  const root = Random.make(seed as Tensor<never, "int">)
  const values = all.map((p, i) => cast(Init.values(p.init, p.axes, p.repeated, Random.child(root, paths[i]!)), dtype))
  return Program.make({ seed }, Tree.unflatten(shape, values) as Tensors<P>)
}
