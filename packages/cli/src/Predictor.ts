/** Probabilities, and attention, of pictures. */
import * as Axis from "@tessera/core/Axis"
import * as Host from "@tessera/core/HostArray"
import * as Precision from "@tessera/core/Precision"
import type { Buffer } from "@tessera/core/services/Backend"
import { Backend } from "@tessera/core/services/Backend"
import * as Step from "@tessera/core/Step"
import * as T from "@tessera/core/Tensor"
import * as Vit from "@tessera/models/Vit"
import type * as VitConfig from "@tessera/models/VitConfig"
import * as Effect from "effect/Effect"

const imageType = (config: VitConfig.VitConfig, batch: number): T.TensorType => ({
  axes: Axis.list({ batch, row: config.imageSize.height, col: config.imageSize.width, channel: config.channels }),
  dtype: "f32"
})

const bytesOf = (x: Float32Array) => new Uint8Array(x.buffer, x.byteOffset, x.byteLength)

/** Runs a function of parameters and pictures and reads its one result, with the axes in the given order. */
const compiled = Effect.fnUntraced(function* (
  config: VitConfig.VitConfig,
  options: {
    readonly batch: number
    readonly order: ReadonlyArray<string>
    readonly precision?: Precision.Precision
    readonly apply: (params: any, images: Vit.Image, call: any) => T.AnyTensor
  }
) {
  const backend = yield* Backend
  const program = yield* Effect.fromResult(
    Step.forward({
      params: Vit.make(config).params,
      batch: { images: imageType(config, options.batch) },
      apply: (params, batch, call) => options.apply(params, batch.images as Vit.Image, call),
      ...(options.precision === undefined ? {} : { precision: options.precision })
    })
  )
  const executable = yield* backend.compile(program)
  const images = yield* backend.allocate(imageType(config, options.batch))
  return Effect.fnUntraced(function* (parameters: ReadonlyArray<Buffer>, pixels: Float32Array) {
    yield* backend.write(images, bytesOf(pixels))
    const [result] = yield* executable.run([...parameters, images])
    const { axes, dtype } = result!.type
    const host = Host.fromBytes(axes, dtype, yield* backend.read(result!))
    return Host.reorder(
      host,
      options.order.map((name) => Axis.find(axes, name)!)
    )
  })
})

/** Class probabilities of `batch` normalised pictures at once: `[batch, classes]`. */
export const probabilities = (config: VitConfig.VitConfig, batch: number, precision?: Precision.Precision) => {
  const vit = Vit.classifier(config)
  return compiled(config, {
    batch,
    order: ["batch", "classes"],
    apply: (params, images, call) => T.softmax(T.cast(vit.apply(params, images, call), "f32"), "classes"),
    ...(precision === undefined ? {} : { precision })
  })
}

/** Attention of one picture in every layer, in f32 whatever the parameters are stored in: `[layers, batch=1, heads, seq, keySeq]`. */
export const attention = (config: VitConfig.VitConfig, precision: Precision.Precision = Precision.f32) => {
  const vit = Vit.attentionWeights(config)
  return compiled(config, {
    batch: 1,
    order: ["layers", "batch", "heads", "seq", "keySeq"],
    precision: Precision.exact(precision),
    apply: (params, images, call) => vit.apply(params, images, call)
  })
}

/** Classes of one row, the most probable first. */
export const ranked = (row: ArrayLike<number>, top: number) =>
  Array.from(row, (probability, label) => ({ label, probability }))
    .toSorted((a, b) => b.probability - a.probability)
    .slice(0, top)
