/** A plan as a page: memory of every stage by kind beside what a device holds, and one step with its bubbles and collectives. */
import { usable } from "@tessera/core/planner/Prediction"
import { bytesText } from "../explain/Report.ts"
import { escape, page, section, table, tiles } from "../pictures/Page.ts"
import type { Cluster } from "./Cluster.ts"
import type { Outlook } from "./Outlook.ts"
import { memoryKinds, parts, secondsText, teraflops } from "./Text.ts"

const palette = ["#3b82f6", "#6366f1", "#a855f7", "#f97316", "#eab308", "#10b981", "#64748b", "#ef4444"]

const width = 1000

interface Bar {
  readonly label: string
  readonly pieces: ReadonlyArray<{ readonly name: string; readonly value: number; readonly color: string }>
}

/** Bars of pieces on one scale, with a mark where there is a limit. */
const bars = (all: ReadonlyArray<Bar>, most: number, text: (value: number) => string, limit?: number): string => {
  const [left, height, gap] = [90, 28, 10]
  const scale = (width - left - 20) / Math.max(most, limit ?? 0)
  const rows = all.map(({ label, pieces }, i) => {
    const y = i * (height + gap) + 4
    let x = left
    const drawn = pieces.map(({ color, name, value }) => {
      const w = value * scale
      const rect = `<rect x="${x.toFixed(1)}" y="${y}" width="${w.toFixed(1)}" height="${height}" fill="${color}"><title>${escape(`${name}: ${text(value)}`)}</title></rect>`
      x += w
      return rect
    })
    return `<text x="${left - 10}" y="${y + 19}" text-anchor="end" fill="currentColor" font-size="13">${escape(label)}</text>${drawn.join("")}`
  })
  const total = all.length * (height + gap) + 8
  const mark =
    limit === undefined
      ? ""
      : `<line x1="${left + limit * scale}" x2="${left + limit * scale}" y1="0" y2="${total}" stroke="#ef4444" stroke-width="2" stroke-dasharray="5 4"><title>${escape(`a device holds ${text(limit)}`)}</title></line>`
  return `<svg viewBox="0 0 ${width} ${total}" role="img">${rows.join("")}${mark}</svg>`
}

const legend = (names: ReadonlyArray<readonly [name: string, color: string]>): string =>
  `<figcaption>${names.map(([name, color]) => `<span style="color:${color}">&#9632;</span> ${escape(name)}`).join(" &nbsp; ")}</figcaption>`

const memory = ({ prediction }: Outlook, cluster: Cluster): string => {
  const kinds = memoryKinds.filter((k) => prediction.stages.some((s) => s.memory[k] > 0))
  const colors = kinds.map((k) => [k, palette[memoryKinds.indexOf(k)]!] as const)
  const all = prediction.stages.map(({ memory: m }, i): Bar => ({
    label: prediction.stages.length === 1 ? "every rank" : `stage ${i}`,
    pieces: colors.map(([k, color]) => ({ name: k, value: m[k], color }))
  }))
  return bars(all, prediction.memory.total, bytesText, usable(cluster.device)) + legend(colors)
}

const step = (outlook: Outlook): string => {
  const { prediction } = outlook
  if (prediction.timeline === null) {
    const found = parts(outlook)
    const colors = found.map(([name], i) => [name, palette[i % palette.length]!] as const)
    const pieces = found.map(([name, value], i) => ({ name, value, color: colors[i]![1] }))
    return bars([{ label: "every rank", pieces }], prediction.seconds, secondsText) + legend(colors)
  }
  const { length, ticks } = prediction.timeline
  const [left, height] = [90, 24]
  const scale = (width - left - 20) / length
  const stages = prediction.stages.length
  const rows = Array.from(
    { length: stages },
    (_, i) =>
      `<text x="${left - 10}" y="${i * (height + 6) + 17}" text-anchor="end" fill="currentColor" font-size="13">stage ${i}</text>`
  )
  const boxes = ticks.map(({ end, microbatch, pass, stage, start }) => {
    const [x, w] = [left + start * scale, (end - start) * scale]
    const label =
      w > 14
        ? `<text x="${(x + w / 2).toFixed(1)}" y="${stage * (height + 6) + 16}" text-anchor="middle" fill="#fff" font-size="11">${microbatch}</text>`
        : ""
    return `<rect x="${x.toFixed(1)}" y="${stage * (height + 6)}" width="${Math.max(0.5, w - 1).toFixed(1)}" height="${height}" fill="${pass === "forward" ? palette[0] : palette[3]}"><title>${pass}, microbatch ${microbatch}</title></rect>${label}`
  })
  const drawn = `<svg viewBox="0 0 ${width} ${stages * (height + 6)}" role="img">${rows.join("")}${boxes.join("")}</svg>`
  return (
    drawn +
    legend([
      ["forward passes", palette[0]!],
      ["backward passes", palette[3]!]
    ])
  )
}

export const html = (outlook: Outlook, cluster: Cluster, facts: ReadonlyArray<readonly [string, string]>): string => {
  const { prediction, recipe, speed } = outlook
  return page({
    title: `${recipe.name} on ${cluster.count} x ${cluster.device.name}`,
    summary: prediction.fits
      ? "The plan fits. Nothing was run: sizes are those of the compiled step, times are predicted."
      : "The plan does not fit. Nothing was run: sizes are those of the compiled step, times are predicted.",
    tiles: tiles([
      ["memory of the fullest rank", bytesText(prediction.memory.total)],
      ["one step", secondsText(prediction.seconds)],
      ["samples/s", Math.round(speed.samplesPerSecond).toLocaleString("en-US")],
      ["of the peak", `${(100 * speed.utilisation).toFixed(1)} %`]
    ]),
    sections: [
      section("Memory", `<figure>${memory(outlook, cluster)}</figure>`, true),
      section("One step", `<figure>${step(outlook)}</figure>`, true),
      section("Time", table(parts(outlook).map(([what, s]) => [what, secondsText(s)] as const))),
      section("Speed", table([["model FLOPs a second", teraflops(speed.flopsPerSecond)], ...facts]))
    ],
    footer: `${cluster.device.source} · written by Tessera`
  })
}
