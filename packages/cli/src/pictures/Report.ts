/** One page about a run, in one file: nothing is fetched when it is read. */
import * as Effect from "effect/Effect"
import * as os from "node:os"
import { dataUri } from "./Render.ts"
import { numberText, percentText } from "./Scale.ts"
import type { History } from "./Svg.ts"
import { charts, runCharts } from "./Svg.ts"

/** Rows of a table, in order. */
export type Facts = ReadonlyArray<readonly [name: string, value: string]>

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

const escape = (text: string) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;")

const durationText = (seconds: number): string => {
  const whole = Math.round(seconds)
  const hours = Math.floor(whole / 3600)
  const minutes = Math.floor((whole % 3600) / 60)
  if (hours > 0) return `${hours} h ${minutes} min`
  return minutes > 0 ? `${minutes} min ${whole % 60} s` : `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`
}

const table = (facts: Facts): string =>
  `<table><tbody>${facts.map(([name, value]) => `<tr><th scope="row">${escape(name)}</th><td>${escape(value)}</td></tr>`).join("")}</tbody></table>`

const section = (title: string, body: string, wide = false): string =>
  `<section${wide ? ` class="wide"` : ""}><h2>${escape(title)}</h2>${body}</section>`

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

const tiles = (results: Results): string => {
  const all: ReadonlyArray<readonly [string, string]> = [
    ...(results.validationAccuracy === undefined
      ? []
      : [["accuracy", percentText(results.validationAccuracy)] as const]),
    ...(results.validationLoss === undefined ? [] : [["validation loss", numberText(results.validationLoss)] as const]),
    ["images/s", numberText(results.imagesPerSecond)],
    ["duration", durationText(results.seconds)]
  ]
  return `<div class="tiles">${all.map(([name, value]) => `<div class="tile"><b>${escape(value)}</b><span>${escape(name)}</span></div>`).join("")}</div>`
}

const style = `
:root{color-scheme:light dark;--ink:#1f2937;--muted:#6b7280;--paper:#ffffff;--back:#f5f6f8;--line:#e5e7eb;--accent:#2563eb}
@media (prefers-color-scheme:dark){:root{--ink:#e5e7eb;--muted:#9ca3af;--paper:#12161c;--back:#0b0e12;--line:#2d3540;--accent:#60a5fa}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 20px 64px}
header p{margin:4px 0 0;color:var(--muted);max-width:70ch}
h1{font-size:28px;line-height:1.2;margin:0}
h2{font-size:16px;margin:0 0 12px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0}
.tile,section{background:var(--paper);border:1px solid var(--line);border-radius:12px}
.tile{padding:16px 18px}
.tile b{display:block;font-size:26px;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(320px,1fr));gap:16px}
section{padding:18px 20px;min-width:0}
.wide{grid-column:1/-1}
svg,img{display:block;max-width:100%;height:auto}
img{border-radius:8px;background:#fff}
figure{margin:0}figcaption{color:var(--muted);font-size:13px;margin-top:8px}
table{width:100%;border-collapse:collapse;font-size:14px}
th,td{padding:6px 0;border-top:1px solid var(--line);text-align:left;vertical-align:top;overflow-wrap:anywhere}
tr:first-child th,tr:first-child td{border-top:0}
th{color:var(--muted);font-weight:400;width:45%;padding-right:12px}
td{font-variant-numeric:tabular-nums}
footer{color:var(--muted);font-size:13px;margin-top:24px}`

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
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(content.title)}</title>
<style>${style}</style>
</head>
<body>
<main>
<header><h1>${escape(content.title)}</h1><p>${escape(content.summary)}</p></header>
${tiles(content.results)}
<div class="grid">
${section("Curves", curves, true)}
${pictures.join("\n")}
${section("Results", table(resultFacts(content.results)))}
${section("Machine", table(content.machine))}
${section("Configuration", table(content.configuration), true)}
</div>
<footer>${escape(content.date)} · written by Tessera</footer>
</main>
</body>
</html>
`
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
