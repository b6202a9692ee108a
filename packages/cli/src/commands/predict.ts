/** `tessera predict`. */
import * as Augmenter from "@tessera/data/Augmenter"
import * as Decode from "@tessera/data/Decode"
import * as Image from "@tessera/data/Image"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Augment from "@tessera/data/Augment"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import { extname, join } from "node:path"
import * as Backends from "../Backends.ts"
import * as Dataset from "../Dataset.ts"
import * as Experiment from "../Experiment.ts"
import { UsageError } from "../Failure.ts"
import type { LoadedModel } from "../LoadedModel.ts"
import { print, printJson } from "../Output.ts"
import { attentionPicture, patchMap } from "../pictures/AttentionPicture.ts"
import * as Predictor from "../Predictor.ts"
import { load, type ModelInput } from "./evaluate.ts"

/** Pixels of a file as the model wants them: evaluated like test pictures, resized to the model's size where they are not. */
const pixels = Effect.fnUntraced(function* ({ recipe }: LoadedModel, file: string) {
  const fs = yield* FileSystem.FileSystem
  const bytes = yield* fs
    .readFile(file)
    .pipe(
      Effect.mapError(
        (e) => new UsageError({ problem: `${file} cannot be read: ${e.message}`, hint: "give an existing picture" })
      )
    )
  const sample = { key: file, origin: file, image: Image.encoded(bytes), label: null }
  const channels = recipe.model.channels as 1 | 3
  const image = yield* Decode.decode(sample, { channels })
  const { height, width } = recipe.model.imageSize
  const fits = image.height === height && image.width === width
  const pipeline = Dataset.evaluationPipeline(recipe)
  const resized =
    fits || pipeline.operations.length > 0 ? pipeline : { ...pipeline, operations: [Augment.resizeSquare(height)] }
  const normalised = yield* Augmenter.apply(image, resized, { seed: 0, epoch: 0, index: 0 })
  return { bytes, normalised }
})

/** `out.png` for one picture; `out-NAME.png` for each of several. */
const attentionFile = (out: string, image: string, count: number): string => {
  if (count === 1) return out
  const name = image.replace(/^.*[/\\]/, "").replace(/\.[^.]*$/, "")
  return join(out.slice(0, out.length - extname(out).length) + `-${name}${extname(out) === "" ? ".png" : extname(out)}`)
}

/** The most probable classes of each picture, and where the model looked. */
export const predict = (
  input: ModelInput & {
    readonly images: ReadonlyArray<string>
    readonly top: number
    readonly attention?: string
    readonly json: boolean
  }
) =>
  Effect.gen(function* () {
    const model = yield* load(input)
    const config = model.recipe.model
    const fs = yield* FileSystem.FileSystem
    const precision = Experiment.precision(model.recipe)
    const classify = yield* Predictor.probabilities(config, 1, precision)
    const look = input.attention === undefined ? null : yield* Predictor.attention(config, precision)
    for (const image of input.images) {
      const { bytes, normalised } = yield* pixels(model, image)
      const { data } = yield* classify(model.parameters, normalised)
      const top = Predictor.ranked(data, input.top).map((p) => ({
        ...p,
        name: model.classes?.[p.label] ?? String(p.label)
      }))
      if (input.json) yield* printJson({ image, top })
      else yield* print(`${image}: ${top.map((p) => `${p.name} ${(p.probability * 100).toFixed(1)} %`).join(", ")}`)
      if (look !== null) {
        const weights = yield* look(model.parameters, normalised)
        const { cols, rows } = VitConfig.grid(config)
        const seq = VitConfig.sequenceLength(config)
        const map = patchMap(
          { layers: config.layers, heads: config.heads, seq, data: weights.data },
          { rows, columns: cols }
        )
        const out = attentionFile(input.attention!, image, input.images.length)
        yield* fs.writeFile(out, yield* attentionPicture(bytes, map, { title: `Attention: ${top[0]!.name}` }))
        if (!input.json) yield* print(`  attention: ${out}`)
      }
    }
  }).pipe(Effect.scoped, Effect.provide([Dataset.onThisThread, Backends.layer(input)]))
