/** One page about a run, in one file: nothing is fetched when it is read. */
import * as Effect from "effect/Effect"
import * as os from "node:os"
import type { Facts } from "./Page.ts"
import { escape, page, section, table, tiles as numbers } from "./Page.ts"
import { dataUri } from "./Render.ts"
import { numberText, percentText } from "./Scale.ts"
import type { History } from "./Svg.ts"
import { charts, runCharts } from "./Svg.ts"

export type { Facts }

export interface Results {
  readonly steps: number
  readonly seconds: number
  /** Images per second over the whole run. */
  readonly imagesPerSecond: number
  readonly trainLoss?: number
  readonly validationLoss?: number
  readonly validationAccuracy?: number
  /** Further rows, such as a comparison with a published number. */
  readonly more?: Facts
}

export interface Picture {
  readonly title: string
  readonly caption?: string
  readonly png: Uint8Array
}

export interface ReportContent {
  readonly title: string
  /** One sentence about the run. */
  readonly summary: string
  /** When the run ended, as text. */
  readonly date: string
  readonly results: Results
  readonly history: History
  readonly pictures: ReadonlyArray<Picture>
  readonly configuration: Facts
  readonly machine: Facts
}

const durationText = (seconds: number): string => {
  const whole = Math.round(seconds)
  const hours = Math.floor(whole / 3600)
  const minutes = Math.floor((whole % 3600) / 60)
  if (hours > 0) return `${hours} h ${minutes} min`
  return minutes > 0 ? `${minutes} min ${whole % 60} s` : `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`
}

const resultFacts = (results: Results): Facts => [
  ...(results.validationAccuracy === undefined
    ? []
    : [["Validation accuracy", percentText(results.validationAccuracy)] as const]),
  ...(results.validationLoss === undefined ? [] : [["Validation loss", numberText(results.validationLoss)] as const]),
  ...(results.trainLoss === undefined ? [] : [["Training loss", numberText(results.trainLoss)] as const]),
  ["Steps", results.steps.toLocaleString("en-US")],
  ["Duration", durationText(results.seconds)],
  ["Throughput", `${numberText(results.imagesPerSecond)} images/s`],
  ...(results.more ?? [])
]

const tilesOf = (results: Results): string => {
  const all: ReadonlyArray<readonly [string, string]> = [
    ...(results.validationAccuracy === undefined
      ? []
      : [["accuracy", percentText(results.validationAccuracy)] as const]),
    ...(results.validationLoss === undefined ? [] : [["validation loss", numberText(results.validationLoss)] as const]),
    ["images/s", numberText(results.imagesPerSecond)],
    ["duration", durationText(results.seconds)]
  ]
  return numbers(all)
}

/** The page as HTML. */
export const report = (content: ReportContent): string => {
  const curves = charts(runCharts(content.history), { width: 1000 })
  const pictures = content.pictures.map(({ title, caption, png }) => {
    // PNG keeps its size in bytes 16 to 23; pictures are drawn at two pixels per unit.
    const view = new DataView(png.buffer, png.byteOffset, png.byteLength)
    const width = png.byteLength < 24 ? 0 : Math.round(view.getUint32(16) / 2)
    const size = width === 0 ? "" : ` width="${width}"`
    const note = caption === undefined ? "" : `<figcaption>${escape(caption)}</figcaption>`
    return section(title, `<figure><img alt="${escape(title)}"${size} src="${dataUri(png)}">${note}</figure>`, true)
  })
  return page({
    title: content.title,
    summary: content.summary,
    tiles: tilesOf(content.results),
    sections: [
      section("Curves", curves, true),
      ...pictures,
      section("Results", table(resultFacts(content.results))),
      section("Machine", table(content.machine)),
      section("Configuration", table(content.configuration), true)
    ],
    footer: `${content.date} · written by Tessera`
  })
}

/** A nested value as rows with dotted names: `optimizer.learningRate`. */
export const factsOf = (value: unknown, prefix = ""): Facts => {
  if (typeof value !== "object" || value === null) return [[prefix, String(value)]]
  if (Array.isArray(value) && value.every((item) => typeof item !== "object")) return [[prefix, value.join(", ")]]
  return Object.entries(value).flatMap(([name, item]) => factsOf(item, prefix === "" ? name : `${prefix}.${name}`))
}

/** What the machine is: processor, cores, memory, system, versions. */
export const machineFacts = (versions: Readonly<Record<string, string>> = {}): Effect.Effect<Facts> =>
  Effect.sync(() => {
    const cpus = os.cpus()
    return [
      ["Processor", cpus[0]?.model.trim() || os.arch()],
      ["Cores", `${os.availableParallelism()} of ${cpus.length}`],
      ["Memory", `${(os.totalmem() / 2 ** 30).toFixed(1)} GiB`],
      ["System", `${os.type()} ${os.release()} ${os.arch()}`],
      ["Node", process.versions.node],
      ...Object.entries(versions)
    ]
  })
