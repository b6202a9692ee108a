/** The pictures and the report of a finished run. */
import * as Jsonl from "@tessera/core/layers/JsonlTracker"
import type { Buffer } from "@tessera/core/services/Backend"
import { Augmenter } from "@tessera/data/Augmenter"
import * as Decode from "@tessera/data/Decode"
import type { ImageSample } from "@tessera/data/Samples"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Stream from "effect/Stream"
import * as Dataset from "./Dataset.ts"
import * as Experiment from "./Experiment.ts"
import { historyOf } from "./pictures/History.ts"
import { rgbToPng, type RgbImage } from "./pictures/Render.ts"
import * as Report from "./pictures/Report.ts"
import { sampleGrid } from "./pictures/SampleGrid.ts"
import { runCurves } from "./pictures/Svg.ts"
import * as Predictor from "./Predictor.ts"
import type { Recipe } from "./Recipe.ts"
import type { Paths } from "./RunFolder.ts"

/** Pixels of a sample as RGB. */
export const rgb = (sample: ImageSample) =>
  Effect.map(Decode.decode(sample, { channels: 3 }), ({ data, height, width }): RgbImage => ({ data, height, width }))

/** What training says about itself when it ends. */
export interface Summary {
  readonly steps: number
  /** Seconds of training steps, all parts of the run together. */
  readonly seconds: number
  readonly imagesPerSecond: number
  readonly loss: number
  readonly validation?: { readonly loss: number; readonly accuracy: number; readonly samples: number }
}

/** Reads the run's own metrics. */
export const history = Effect.fnUntraced(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  const lines = yield* Stream.runCollect(Jsonl.readLines(fs, file))
  const steps = lines.flatMap((line) => (line.kind === "step" ? [line] : []))
  const seconds = steps.reduce((sum, step) => sum + step.seconds, 0)
  const samples = steps.reduce((sum, step) => sum + step.samples, 0)
  const last = steps.at(-1)
  return {
    history: historyOf(lines),
    summary: {
      steps: last?.step ?? 0,
      seconds,
      imagesPerSecond: seconds > 0 ? samples / seconds : 0,
      loss: last?.loss ?? Number.NaN
    } satisfies Summary
  }
})

const gridCount = 24

/** Predictions for the first test pictures, as a picture; the first picture itself is kept to try `predict` on. */
const samples = Effect.fnUntraced(function* (
  recipe: Recipe,
  parameters: ReadonlyArray<Buffer>,
  paths: Paths,
  names: ReadonlyArray<string> | null
) {
  const fs = yield* FileSystem.FileSystem
  const data = yield* Dataset.evaluation(recipe, { batchSize: gridCount })
  const predict = yield* Predictor.probabilities(recipe.model, gridCount, Experiment.precision(recipe))
  const [batch] = yield* Stream.runCollect(Stream.take(data.batches, 1))
  const name = (label: number) => names?.[label] ?? String(label)
  const found = yield* predict(parameters, batch!.images)
  const shown: Array<Parameters<typeof sampleGrid>[0][number]> = []
  for (let i = 0; i < Math.min(gridCount, data.sampleCount); i++) {
    const image = yield* rgb(yield* data.source.get(batch!.indices[i]!))
    const [best] = Predictor.ranked(found.data.slice(i * recipe.data.classes, (i + 1) * recipe.data.classes), 1)
    shown.push({ image, label: name(batch!.labels[i]!), predicted: name(best!.label), confidence: best!.probability })
    if (i === 0) yield* fs.writeFile(paths.sample, yield* rgbToPng("sample", image))
  }
  const png = yield* sampleGrid(shown, { title: `Predictions of ${recipe.name}` })
  yield* fs.writeFile(paths.samples, png)
  return png
})

/** Writes curves.svg, samples.png, sample.png and report.html. */
export const write = Effect.fn("Gallery.write")(function* (options: {
  readonly recipe: Recipe
  readonly parameters: ReadonlyArray<Buffer>
  readonly paths: Paths
  readonly classes: ReadonlyArray<string> | null
  readonly machine: string
  readonly validation?: Summary["validation"]
}) {
  const { paths, recipe, validation } = options
  const fs = yield* FileSystem.FileSystem
  const { history: curves, summary } = yield* history(paths.metrics)
  yield* fs.writeFileString(paths.curves, runCurves(curves))
  const png =
    recipe.data.test === null
      ? null
      : yield* samples(recipe, options.parameters, paths, options.classes).pipe(Effect.provide(Augmenter.layerNative))
  const now = new Date(yield* Clock.currentTimeMillis).toISOString().slice(0, 16).replace("T", " ")
  const html = Report.report({
    title: recipe.name,
    summary: recipe.description,
    date: `${now} UTC`,
    results: {
      steps: summary.steps,
      seconds: summary.seconds,
      imagesPerSecond: summary.imagesPerSecond,
      trainLoss: summary.loss,
      ...(validation === undefined ? {} : { validationLoss: validation.loss, validationAccuracy: validation.accuracy })
    },
    history: curves,
    pictures: png === null ? [] : [{ title: "Predictions", caption: "The first test pictures", png }],
    configuration: Report.factsOf(recipe),
    machine: yield* Report.machineFacts({ Backend: options.machine })
  })
  yield* fs.writeFileString(paths.report, html)
  const result: Summary = validation === undefined ? summary : { ...summary, validation }
  return result
})
