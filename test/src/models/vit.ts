/** Running small models on the reference evaluator. */
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import * as Module from "@tessera/core/Module"
import * as T from "@tessera/core/Tensor"
import * as Program from "@tessera/core/Program"
import * as Random from "@tessera/core/Random"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"
import type { Parameters } from "@tessera/models/import/NameTable"

/** 8 x 8 pixels in 4 patches, width 8, 2 heads, 2 layers, 3 classes with a random head. */
export const tiny = (changes: Partial<VitConfig.VitConfig> = {}): VitConfig.VitConfig =>
  VitConfig.make({
    imageSize: { height: 8, width: 8 },
    patch: 4,
    channels: 2,
    hidden: 8,
    mlp: 12,
    heads: 2,
    layers: 2,
    epsilon: 1e-5,
    head: { kind: "linear", classes: 3, kernel: "normal", bias: 0 },
    ...changes
  })

/** Numbers without a pattern, the same every time, within `size` of 0. */
export const wave = (count: number, salt: number, size = 1): Float64Array =>
  Float64Array.from({ length: count }, (_, i) => size * Math.sin(i * 1.618 * (1 + salt * 0.1) + salt))

/** Initial values by path. */
export const initial = (config: VitConfig.VitConfig, seed = 7): ReadonlyArray<Host.HostArray> =>
  Evaluate.runUnsafe(Module.init(Vit.make(config).params), [Host.scalar(seed, "u32")])

/** Parameter values that differ from 0 everywhere, so that no path is dead. */
export const lively = (config: VitConfig.VitConfig): ReadonlyArray<Host.HostArray> =>
  Module.leaves(Vit.make(config).params).map(({ param }, i) => ({
    axes: param.axes,
    dtype: "f32",
    data: wave(Axis.count(param.axes), i + 1, 0.4)
  }))

export const fromParameters = (config: VitConfig.VitConfig, values: Parameters): ReadonlyArray<Host.HostArray> =>
  Module.leaves(Vit.make(config).params).map(({ path }) => Host.make(values[path]!.axes, "f32", values[path]!.data))

export const pictures = (config: VitConfig.VitConfig, batch: number): Host.HostArray => {
  const axes = Axis.list({ batch, row: config.imageSize.height, col: config.imageSize.width, channel: config.channels })
  return { axes, dtype: "f32", data: wave(Axis.count(axes), 3) }
}

/** Traces `f` on the model's inputs. Operands: parameters, pictures, examples (u32), seed (u32). */
export const program = <Out>(
  config: VitConfig.VitConfig,
  batch: number,
  f: (output: Vit.VitOutput) => Out,
  options: { readonly train?: boolean; readonly features?: boolean; readonly attention?: boolean } = {}
) => {
  const vit = Vit.make(config, options)
  const params = Module.inputs(vit.params)
  const image = T.input({ axes: pictures(config, batch).axes, dtype: "f32" })
  const example = T.input({ axes: Axis.list({ batch }), dtype: "u32" })
  const seed = T.input({ axes: [], dtype: "u32" })
  const key = Random.make(seed as T.Tensor<never, "int">, example)
  const call = options.train === true ? Module.training(key) : Module.evaluation
  return Program.make({ params, image, example, seed }, f(vit.apply(params, image as Vit.Image, call)))
}

export const operands = (
  params: ReadonlyArray<Host.HostArray>,
  image: Host.HostArray,
  seed = 1
): ReadonlyArray<Host.HostArray> => {
  const batch = image.axes[0]!.size
  return [
    ...params,
    image,
    Host.make(
      Axis.list({ batch }),
      "u32",
      Array.from({ length: batch }, (_, i) => 100 + i)
    ),
    Host.scalar(seed, "u32")
  ]
}
