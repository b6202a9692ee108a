/** `tessera models`. */
import * as Presets from "@tessera/models/presets"
import * as Vit from "@tessera/models/Vit"
import type * as VitConfig from "@tessera/models/VitConfig"
import * as Effect from "effect/Effect"
import { grouped, print, printJson, table } from "../Output.ts"

/** The heads of published models: none, a linear map to 1000 or 21843 classes, and the MLP heads of pre-training. */
const heads = {
  none: { kind: "none" },
  linear1000: { kind: "linear", classes: 1000, kernel: "zeros", bias: 0 },
  linear21843: { kind: "linear", classes: 21_843, kernel: "zeros", bias: 0 },
  rosettaMlp: { kind: "rosettaMlp", classes: 1000, width: 768, bias: 0 },
  nemoMlp: { kind: "nemoMlp", classes: 1000, bias: -10 }
} as const satisfies Readonly<Record<string, VitConfig.Head>>

const describe = (name: string, { config, source }: Presets.Preset) => ({
  name,
  source,
  imageSize: config.imageSize,
  patch: config.patch,
  hidden: config.hidden,
  mlp: config.mlp,
  heads: config.heads,
  layers: config.layers,
  parameters: Vit.parameterCount(config),
  parametersByHead: Object.fromEntries(
    Object.entries(heads).map(([head, value]) => [head, Vit.parameterCount(config, { head: value })])
  ),
  /** Of one picture's forward pass without a head, contractions only. */
  forwardFlops: Vit.forwardFlops(config, { head: heads.none })
})

/** Every preset with its parameters and FLOPs. */
export const models = Effect.fn("models")(function* (input: { readonly json: boolean }) {
  const all = Object.entries(Presets.presets).map(([name, preset]) => describe(name, preset))
  if (input.json) return yield* printJson(all)
  const rows = all.map((m) => [
    m.name,
    `${m.imageSize.height}`,
    `${m.patch}`,
    `${m.hidden}`,
    `${m.layers}`,
    `${m.heads}`,
    grouped(m.parameters),
    `${(m.forwardFlops / 1e9).toFixed(m.forwardFlops < 1e9 ? 3 : 1)}`
  ])
  yield* print(table([["preset", "pixels", "patch", "hidden", "layers", "heads", "parameters", "GFLOP"], ...rows]))
  yield* print(
    "\nParameters with the preset's own head; FLOPs of one picture's forward pass without head. --json: with every head."
  )
})
