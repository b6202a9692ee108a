/**
 * Tables between the tensors of a published checkpoint and our parameters. A rule names the axes of one source tensor; reading and writing are the same
 * permutation, so a table works in both directions. Tables are total: every source tensor is used once or listed as ignored, every parameter is filled.
 */
import * as Axis from "@tessera/core/Axis"
import * as Module from "@tessera/core/Module"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"

/** A tensor as a checkpoint holds it: sizes without names, row-major, decoded to f32. */
export interface SourceTensor {
  /** How the file stored it, such as "F32" or "BF16". */
  readonly dtype: string
  readonly shape: ReadonlyArray<number>
  readonly data: Float32Array
}

/** Tensors of a checkpoint by name. */
export type Source = Readonly<Record<string, SourceTensor>>

/** A parameter's values, row-major in the order of `axes`. */
export interface ParameterArray {
  readonly axes: Axis.Axes
  readonly data: Float32Array
}

/** Parameters by path. */
export type Parameters = Readonly<Record<string, ParameterArray>>

/** One source tensor and the parameters in it. */
export interface Rule {
  /** Name in the checkpoint; `{layer}` stands for the number of a layer. */
  readonly source: string
  /**
   * The source's dimensions, each the product of named axes, outermost first; no axes is a dimension of size 1. `[["heads", "headDim"], ["embed"]]` is a
   * matrix whose rows run over heads, then over the width of a head.
   */
  readonly dims: ReadonlyArray<ReadonlyArray<string>>
  /** Paths of the parameters. Several share the source along the axis `part` of `dims`, in this order. */
  readonly targets: ReadonlyArray<string>
}

export interface NameTable {
  readonly rules: ReadonlyArray<Rule>
  /** Source names that are known and not wanted. */
  readonly ignored: ReadonlyArray<RegExp>
}

/** A checkpoint and a model that do not fit each other. */
export class NameTableError extends Schema.TaggedError<NameTableError>()("NameTableError", {
  problem: Schema.Literals([
    "MissingTensor",
    "UnusedTensor",
    "UnfilledParameter",
    "FilledTwice",
    "UsedTwice",
    "UnknownParameter",
    "ShapeMismatch"
  ]),
  /** Name in the checkpoint, if one is concerned. */
  tensor: Schema.String,
  /** Path of the parameter, if one is concerned. */
  parameter: Schema.String,
  detail: Schema.String
}) {
  override get message() {
    return this.detail
  }
}

const fail = (problem: NameTableError["problem"], tensor: string, parameter: string, detail: string) =>
  Result.fail(new NameTableError({ problem, tensor, parameter, detail }))

/** One source tensor with the axes of every dimension, and where each of its parts goes. */
interface Placement {
  readonly source: string
  readonly shape: ReadonlyArray<number>
  /** All axes in the source's memory order. */
  readonly axes: Axis.Axes
  readonly targets: ReadonlyArray<{
    readonly path: string
    readonly axes: Axis.Axes
    readonly layer: number | null
    readonly part: number | null
  }>
}

/** Works the rules out for a model. */
const place = (table: NameTable, params: Module.ParamTree): Result.Result<ReadonlyArray<Placement>, NameTableError> => {
  const leaves = new Map(Module.leaves(params).map((l) => [l.path, l.param]))
  const placements: Array<Placement> = []
  const filled = new Map<string, string>()
  const used = new Set<string>()
  for (const rule of table.rules) {
    if (used.has(rule.source))
      return fail("UsedTwice", rule.source, rule.targets.join(", "), `two rules read the tensor "${rule.source}"`)
    used.add(rule.source)
    for (const path of rule.targets) {
      if (!leaves.has(path))
        return fail(
          "UnknownParameter",
          rule.source,
          path,
          `tensor "${rule.source}" goes to "${path}", which the model does not have`
        )
      const before = filled.get(path)
      if (before !== undefined)
        return fail(
          "FilledTwice",
          rule.source,
          path,
          `parameter "${path}" is filled by "${before}" and by "${rule.source}"`
        )
      filled.set(path, rule.source)
    }
    const perLayer = rule.source.includes("{layer}")
    const targets = rule.targets.map((path) => ({ path, axes: leaves.get(path)!.axes as Axis.Axes }))
    const [first] = targets
    const known = [
      ...(perLayer ? Axis.without(first!.axes, ["layers"]) : first!.axes),
      ...(targets.length > 1 ? [Axis.make("part", targets.length)] : [])
    ]
    const named = rule.dims.flat()
    const missing = known.find((a) => !named.includes(a.name))
    const extra = named.find((n) => !Axis.has(known, n))
    if (missing !== undefined || extra !== undefined) {
      const what = missing === undefined ? `names the axis "${extra}"` : `does not name the axis "${missing.name}"`
      return fail(
        "ShapeMismatch",
        rule.source,
        first!.path,
        `the rule of "${rule.source}" ${what}; "${first!.path}" has ${Axis.print(first!.axes)}`
      )
    }
    const axes = named.map((n) => Axis.find(known, n)!)
    const shape = rule.dims.map((dim) => dim.reduce((n, name) => n * Axis.find(known, name)!.size, 1))
    const layers = perLayer ? (Axis.find(first!.axes, "layers")?.size ?? 0) : 1
    for (let layer = 0; layer < layers; layer++) {
      placements.push({
        source: rule.source.replace("{layer}", String(layer)),
        shape,
        axes,
        targets: targets.map((t, part) => ({
          ...t,
          layer: perLayer ? layer : null,
          part: targets.length > 1 ? part : null
        }))
      })
    }
  }
  const unfilled = [...leaves.keys()].find((path) => !filled.has(path))
  return unfilled === undefined
    ? Result.succeed(placements)
    : fail("UnfilledParameter", "", unfilled, `no tensor fills the parameter "${unfilled}"`)
}

/** Calls `f` with every element's offset in the source and in the parameter. */
const pairs = (
  placement: Placement,
  target: Placement["targets"][number],
  f: (source: number, parameter: number) => void
): void => {
  const inner = Axis.without(target.axes, target.layer === null ? [] : ["layers"])
  const strides = (axes: Axis.Axes, name: string) => {
    const at = axes.findIndex((a) => a.name === name)
    return at < 0 ? 0 : Axis.count(axes.slice(at + 1))
  }
  const source = (target.part ?? 0) * strides(placement.axes, "part")
  const parameter = (target.layer ?? 0) * strides(target.axes, "layers")
  const steps = inner.map((a) => [a.size, strides(placement.axes, a.name), strides(target.axes, a.name)] as const)
  const walk = (depth: number, s: number, p: number): void => {
    const step = steps[depth]
    if (step === undefined) return f(s, p)
    for (let i = 0; i < step[0]; i++) walk(depth + 1, s + i * step[1], p + i * step[2])
  }
  walk(0, source, parameter)
}

/** Reads a checkpoint into a model's parameters. Fails when a tensor is missing, unused or of another shape, or a parameter stays unfilled. */
export const read = (
  table: NameTable,
  params: Module.ParamTree,
  source: Source
): Result.Result<Parameters, NameTableError> =>
  Result.flatMap(place(table, params), (placements) => {
    const used = new Set(placements.map((p) => p.source))
    const unused = Object.keys(source).find(
      (name) => !used.has(name) && !table.ignored.some((pattern) => pattern.test(name))
    )
    if (unused !== undefined)
      return fail("UnusedTensor", unused, "", `tensor "${unused}" [${source[unused]!.shape}] has no place in the model`)
    const result: Record<string, ParameterArray> = {}
    for (const placement of placements) {
      const tensor = source[placement.source]
      const paths = placement.targets.map((t) => t.path).join(", ")
      if (tensor === undefined)
        return fail("MissingTensor", placement.source, paths, `the checkpoint lacks "${placement.source}" for ${paths}`)
      if (tensor.shape.length !== placement.shape.length || tensor.shape.some((n, i) => n !== placement.shape[i])) {
        const wanted = placement.targets.map((t) => `${t.path} ${Axis.print(t.axes)}`).join(", ")
        return fail(
          "ShapeMismatch",
          placement.source,
          paths,
          `"${placement.source}" is [${tensor.shape}], ${wanted} needs [${placement.shape}]`
        )
      }
      for (const target of placement.targets) {
        const data = (result[target.path] ??= { axes: target.axes, data: new Float32Array(Axis.count(target.axes)) })
          .data
        pairs(placement, target, (s, p) => {
          data[p] = tensor.data[s]!
        })
      }
    }
    return Result.succeed(result)
  })

/** Writes parameters as a checkpoint: the inverse of `read`. Fails when a parameter is missing or of another shape. */
export const write = (
  table: NameTable,
  params: Module.ParamTree,
  values: Parameters
): Result.Result<Source, NameTableError> =>
  Result.flatMap(place(table, params), (placements) => {
    const result: Record<string, SourceTensor> = {}
    for (const placement of placements) {
      const tensor = { dtype: "F32", shape: placement.shape, data: new Float32Array(Axis.count(placement.axes)) }
      for (const target of placement.targets) {
        const value = values[target.path]
        if (value === undefined)
          return fail("UnfilledParameter", placement.source, target.path, `parameter "${target.path}" has no values`)
        if (
          value.axes.length !== target.axes.length ||
          value.axes.some((a, i) => a.name !== target.axes[i]!.name || a.size !== target.axes[i]!.size)
        ) {
          const found = Axis.print(value.axes)
          return fail(
            "ShapeMismatch",
            placement.source,
            target.path,
            `parameter "${target.path}" is ${found}, the model has ${Axis.print(target.axes)}`
          )
        }
        pairs(placement, target, (s, p) => {
          tensor.data[s] = value.data[p]!
        })
      }
      result[placement.source] = tensor
    }
    return Result.succeed(result)
  })
