/** From pre-trained to fine-tuned parameters: another head, another picture size, everything else untouched. */
import * as Axis from "@tessera/core/Axis"
import * as Module from "@tessera/core/Module"
import * as Result from "effect/Result"
import * as Vit from "../Vit.ts"
import * as VitConfig from "../VitConfig.ts"
import type { ParameterArray, Parameters } from "./NameTable.ts"
import { NameTableError } from "./NameTable.ts"
import * as PositionInterpolation from "./positionInterpolation.ts"

/**
 * Drops the old head, begins the new one at its constants (a linear head of kind "zeros": weight 0, bias `bias`), resizes positions, and hands on every
 * other array unchanged (the same object). Fails with a `NameTableError` when the models differ in anything else, or the new head begins at random.
 * @source NVIDIA/JAX-Toolbox@23.10-release rosetta/rosetta/projects/vit/scripts/convert_t5x_pretrain_to_finetune_ckpt.py
 */
export const convert = (
  values: Parameters,
  from: VitConfig.VitConfig,
  to: VitConfig.VitConfig,
  mode: PositionInterpolation.Mode = "zoom"
): Result.Result<Parameters, NameTableError> => {
  const result: Record<string, ParameterArray> = {}
  for (const { param, path } of Module.leaves(Vit.make(to).params)) {
    const axes: Axis.Axes = param.axes
    if (path === "head" || path.startsWith("head/")) {
      if (param.init.kind !== "constant")
        return refuse("UnfilledParameter", path, `parameter "${path}" of the new head begins at random`)
      result[path] = { axes, data: new Float32Array(Axis.count(axes)).fill(param.init.value) }
      continue
    }
    const before = values[path]
    if (before === undefined)
      return refuse("UnfilledParameter", path, `the pre-trained model has no parameter "${path}"`)
    const after = path === "positions" ? positions(before, from, to, mode) : before
    if (!Axis.equal(after.axes, axes)) {
      return refuse(
        "ShapeMismatch",
        path,
        `parameter "${path}" is ${Axis.print(after.axes)}, the new model needs ${Axis.print(axes)}`
      )
    }
    result[path] = after
  }
  return Result.succeed(result)
}

const refuse = (problem: NameTableError["problem"], parameter: string, detail: string) =>
  Result.fail(new NameTableError({ problem, tensor: "", parameter, detail }))

/** `[seq, embed]` of one picture size to another; rows of class tokens are copied. The same object when the grid does not change. */
export const positions = (
  values: ParameterArray,
  from: VitConfig.VitConfig,
  to: VitConfig.VitConfig,
  mode: PositionInterpolation.Mode
): ParameterArray => {
  const [before, after] = [VitConfig.grid(from), VitConfig.grid(to)]
  if (before.rows === after.rows && before.cols === after.cols) return values
  const width = Axis.find(values.axes, "embed")?.size ?? 0
  const classes = from.classTokens * width
  const grid = PositionInterpolation.resize({ ...before, width, data: values.data.subarray(classes) }, after, mode)
  const data = new Float32Array(classes + grid.data.length)
  data.set(values.data.subarray(0, classes))
  data.set(grid.data, classes)
  return { axes: values.axes.map((a) => (a.name === "seq" ? Axis.make("seq", data.length / width) : a)), data }
}
