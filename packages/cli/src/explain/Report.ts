/** Facts about a step as text: alone, or beside those of another configuration. */
import * as Alignment from "@tessera/core/Alignment"
import * as DTypeMap from "@tessera/core/DTypeMap"
import type { Footprint } from "@tessera/core/Footprint"
import type { Traffic } from "@tessera/core/Traffic"
import { grouped, table } from "../Output.ts"
import type { Facts, Stage } from "./Facts.ts"

export const bytesText = (bytes: number): string => {
  const units = ["KiB", "MiB", "GiB", "TiB"]
  const at = units.findLastIndex((_, i) => bytes >= 1024 ** (i + 1))
  return at < 0 ? `${bytes} B` : `${(bytes / 1024 ** (at + 1)).toFixed(at === 0 ? 1 : at === 1 ? 1 : 2)} ${units[at]}`
}

/** A number that is shown, and compared. */
interface Row {
  readonly label: string
  readonly value: number
  readonly show: (value: number) => string
}

const memoryKinds: ReadonlyArray<readonly [keyof Footprint, string]> = [
  ["parameters", "parameters"],
  ["optimizer", "optimizer"],
  ["averages", "averages"],
  ["gradients", "gradients"],
  ["gathered", "gathered parameters"],
  ["activations", "activations"],
  ["batch", "batch"],
  ["total", "in all"]
]

const whatText: Readonly<Record<Traffic["what"], string>> = {
  compute: "values",
  parameter: "parameters",
  gathered: "parameters",
  gradient: "gradients",
  optimizer: "gradients",
  numbers: "numbers"
}

const trafficLabel = (t: Traffic): string => `${t.collective} over ${t.meshAxis}, ${whatText[t.what]} (${t.dtype})`

/** The stage that holds most: what decides whether a step fits. */
const largest = (stages: ReadonlyArray<Stage>): Stage =>
  stages.reduce((a, b) => (b.memory.total > a.memory.total ? b : a))

const sum = (numbers: ReadonlyArray<number>) => numbers.reduce((a, b) => a + b, 0)

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`

const rows = (facts: Facts): ReadonlyArray<Row> => {
  const most = largest(facts.stages)
  const plain = (label: string, value: number): Row => ({ label, value, show: grouped })
  const bytes = (label: string, value: number): Row => ({ label, value, show: bytesText })
  return [
    plain("parameters", facts.parameters),
    plain("forward FLOPs of one picture (contractions)", facts.forwardFlopsPerImage),
    plain("FLOPs of one step", facts.stepFlops),
    plain("ranks", facts.ranks),
    plain("FLOPs of one step, one rank", Math.max(...facts.stages.map((s) => s.flops))),
    ...memoryKinds
      .filter(([kind]) => most.memory[kind] > 0)
      .map(([kind, label]) => bytes(`memory of one rank: ${label}`, most.memory[kind])),
    ...(facts.ranks === 1 ? [] : [bytes("sent by one rank in a step", sum(most.traffic.map((t) => t.bytes)))]),
    ...(facts.bubble === null ? [] : [{ label: "pipeline bubble", value: facts.bubble, show: percent }]),
    ...(facts.launches === null ? [] : [plain("kernels and collectives in a step", facts.launches)])
  ]
}

/** One configuration. */
export const one = (facts: Facts): string => {
  const { ranks, stages } = facts
  const sections = [table(rows(facts).map((r) => [r.label, r.show(r.value)]))]
  if (ranks > 1) sections.push(`mesh ${facts.mesh}${stages.length > 1 ? "; memory is that of the fullest stage" : ""}`)
  if (stages.length > 1) sections.push(`stages\n${table(stageRows(stages))}`)
  if (ranks > 1) {
    const title = stages.length > 1 ? "what a rank of each stage sends in one step" : "what one rank sends in one step"
    sections.push(`${title}\n${table(trafficRows(stages))}`)
  }
  sections.push(`types (${facts.precision}), with how many tensors or equations\n${DTypeMap.print(facts.types)}`)
  if (facts.misaligned.length > 0)
    sections.push(
      `dimensions that vector units cannot fill\n${facts.misaligned.map((m) => `  ${Alignment.print(m)}`).join("\n")}`
    )
  if (facts.schedule !== null) {
    const points = facts.schedule.points.map((p) => [`  step ${p.step}`, p.learningRate.toExponential(3)])
    sections.push(`learning rate: ${facts.schedule.schedule}\n${table(points)}`)
  }
  return sections.join("\n\n")
}

const stageRows = (stages: ReadonlyArray<Stage>): ReadonlyArray<ReadonlyArray<string>> => [
  ["  stage", "FLOPs of a rank", "memory", "microbatches kept"],
  ...stages.map((s, i) => [`  ${i}`, grouped(s.flops), bytesText(s.memory.total), String(s.alive ?? "")])
]

const trafficRows = (stages: ReadonlyArray<Stage>): ReadonlyArray<ReadonlyArray<string>> => [
  ["  collective", ...(stages.length > 1 ? ["stage"] : []), "times", "tensors", "bytes"],
  ...stages.flatMap(({ traffic }, stage) =>
    traffic.map((t) => [
      `  ${trafficLabel(t)}`,
      ...(stages.length > 1 ? [String(stage)] : []),
      grouped(t.count),
      grouped(t.tensors),
      bytesText(t.bytes)
    ])
  )
]

/** Two configurations: every number that differs, both types where they do, and what was changed. */
export const difference = (first: Facts, second: Facts, changes: ReadonlyArray<string>): string => {
  const [a, b] = [withTraffic(first), withTraffic(second)]
  const labels = [...new Set([...a, ...b].map((r) => r.label))]
  const at = (all: ReadonlyArray<Row>, label: string) => all.find((r) => r.label === label)
  const lines = labels.map((label) => {
    const [x, y] = [at(a, label), at(b, label)]
    const show = (x ?? y)!.show
    const ratio =
      x === undefined || y === undefined || x.value === 0 ? "" : x.value === y.value ? "=" : times(y.value / x.value)
    return [label, x === undefined ? "-" : show(x.value), y === undefined ? "-" : show(y.value), ratio]
  })
  const types = typesThatDiffer(first, second)
  return [
    `with ${changes.join(", ")}`,
    table([["", "before", "after", "ratio"], ...lines]),
    ...(types.length === 0 ? [] : [`types that differ\n${table([["", "before", "after"], ...types])}`])
  ].join("\n\n")
}

const times = (ratio: number): string => `x ${ratio.toPrecision(3)}`

const withTraffic = (facts: Facts): ReadonlyArray<Row> => [
  ...rows(facts),
  ...largest(facts.stages).traffic.map((t): Row => ({ label: trafficLabel(t), value: t.bytes, show: bytesText }))
]

const typesThatDiffer = (first: Facts, second: Facts): ReadonlyArray<ReadonlyArray<string>> => {
  const text = (facts: Facts, kind: string): string => {
    const row = facts.types.find((r) => r.kind === kind)
    if (row === undefined) return "-"
    const names = [Object.keys(row.stored), Object.keys(row.calculated)].map((n) => n.toSorted().join("+"))
    return names[1] === "" || names[0] === names[1] ? names[0]! : `${names[0]} calculated in ${names[1]}`
  }
  return DTypeMap.kinds.flatMap((kind) => {
    const [x, y] = [text(first, kind), text(second, kind)]
    return x === y ? [] : [[kind, x, y]]
  })
}
