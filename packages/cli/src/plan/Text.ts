/** Plans as text. */
import { usable } from "@tessera/core/planner/Prediction"
import { grouped, table } from "../Output.ts"
import { bytesText } from "../explain/Report.ts"
import type { Cluster } from "./Cluster.ts"
import type { Outlook } from "./Outlook.ts"

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`

export const secondsText = (seconds: number): string =>
  seconds < 1
    ? `${(1000 * seconds).toFixed(1)} ms`
    : seconds < 600
      ? `${seconds.toFixed(2)} s`
      : `${(seconds / 3600).toFixed(2)} h`

export const teraflops = (flops: number): string => `${(flops / 1e12).toFixed(1)} TFLOP/s`

/** Where the time of the slowest stage goes. */
export const parts = ({ prediction }: Outlook): ReadonlyArray<readonly [what: string, seconds: number]> => {
  const { timing } = prediction.stages.reduce((a, b) => (b.timing.total > a.timing.total ? b : a))
  const all: ReadonlyArray<readonly [string, number]> = [
    ["products", timing.products + timing.operands],
    ["other kernels", timing.kernels],
    ...Object.entries(timing.wires).map(([axis, s]) => [`collectives over ${axis}`, s] as const),
    ["bubbles", prediction.bubble * timing.total]
  ]
  return all.filter(([, s]) => s > 0)
}

export const memoryKinds = [
  "parameters",
  "optimizer",
  "averages",
  "gradients",
  "gathered",
  "activations",
  "batch"
] as const

export const one = (outlook: Outlook, { count, device }: Cluster, samples: number | null): string => {
  const { prediction, recipe, speed, tabulatedFlops } = outlook
  const { memory } = prediction
  const verdict = prediction.fits
    ? `fits: ${bytesText(memory.total)} of ${bytesText(usable(device))}`
    : `does not fit: ${bytesText(memory.total)} on devices that can hold ${bytesText(usable(device))}`
  return [
    `${recipe.name} on ${count} x ${device.name}, ${outlook.prediction.mesh.map(([n, c]) => `${n}=${c}`).join(", ") || "one device"}: ${verdict}`,
    "",
    table([
      ["memory of the fullest rank", ""],
      ...memoryKinds.filter((k) => memory[k] > 0).map((k) => [`  ${k}`, bytesText(memory[k])]),
      ["time of one step", secondsText(prediction.seconds)],
      ...parts(outlook).map(([what, s]) => [`  ${what}`, `${secondsText(s)}  ${percent(s / prediction.seconds)}`]),
      ["samples a second", grouped(Math.round(speed.samplesPerSecond))],
      ["model FLOPs a second", teraflops(speed.flopsPerSecond)],
      ["as Rosetta's tables count them", teraflops(tabulatedFlops)],
      ["share of the peak", percent(speed.utilisation)],
      ...(samples === null ? [] : [["time of an epoch", secondsText(samples / speed.samplesPerSecond)]])
    ])
  ].join("\n")
}

export const many = (found: ReadonlyArray<Outlook>): string =>
  table([
    ["plan", "step", "samples/s", "peak", "memory"],
    ...found.map(({ change, prediction, speed }) => [
      change,
      secondsText(prediction.seconds),
      grouped(Math.round(speed.samplesPerSecond)),
      percent(speed.utilisation),
      bytesText(prediction.memory.total)
    ])
  ])
