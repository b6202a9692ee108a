/** `tessera plan`: whether a step fits on a cluster, how long it takes, and what would do better. */
import { RecipeError } from "@tessera/core/Errors"
import * as Mesh from "@tessera/core/Mesh"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Backends from "../Backends.ts"
import * as Experiment from "../Experiment.ts"
import type { Layer } from "../Layers.ts"
import * as Layers from "../Layers.ts"
import { note, print, printJson } from "../Output.ts"
import * as Cluster from "../plan/Cluster.ts"
import * as Outlook from "../plan/Outlook.ts"
import * as Picture from "../plan/Picture.ts"
import * as Text from "../plan/Text.ts"
import * as RecipeSource from "../RecipeSource.ts"
import * as Strategies from "../Strategies.ts"

export interface PlanInput extends Backends.BackendOptions {
  readonly recipe: string
  readonly set: ReadonlyArray<string>
  readonly devices: string
  readonly mesh?: string
  readonly strategy?: string
  readonly search: boolean
  /** Samples of an epoch. */
  readonly samples?: number
  /** File of the picture. */
  readonly picture?: string
  readonly json: boolean
}

/** What programs read of one plan. */
const facts = ({ change, prediction, speed, tabulatedFlops }: Outlook.Outlook) => ({
  change,
  mesh: Mesh.print(prediction.mesh),
  fits: prediction.fits,
  memory: prediction.memory,
  stages: prediction.stages.map(({ memory, timing }) => ({ memory, timing })),
  bubble: prediction.bubble,
  stepSeconds: prediction.seconds,
  ...speed,
  tabulatedFlopsPerSecond: tabulatedFlops
})

/** Plans a recipe for a cluster. */
export const plan = Effect.fn("plan")(function* (input: PlanInput) {
  const cluster = yield* Effect.fromResult(Cluster.parse(input.devices))
  const own = yield* Effect.fromResult(Strategies.layers(input, Layers.assignment))
  const variant = (layers: ReadonlyArray<Layer>) =>
    Effect.map(RecipeSource.load(input.recipe, { layers: [...own, ...layers] }), (r) => r.recipe)
  const given = yield* variant([])
  const whole = Experiment.strategy(given).mesh.length === 0 && cluster.count > 1
  const shared: Layer = { source: "--devices", values: { strategy: { mesh: { data: cluster.count } } } }
  // Without a mesh the devices share the batch.
  const recipe = whole ? yield* variant([shared]) : given
  const { mesh } = Experiment.strategy(recipe)
  const ranks = Mesh.rankCount(mesh)
  if (ranks !== cluster.count && !input.search)
    return yield* new RecipeError({
      key: "--mesh",
      problem: `${Mesh.print(mesh)} are ${ranks} ranks, ${input.devices} are ${cluster.count} devices`,
      hint: `a mesh of ${cluster.count} ranks, or --search`
    })
  yield* Effect.gen(function* () {
    if (input.search) return yield* searched(input, cluster, recipe, variant)
    yield* note(`planning the step of ${recipe.name} ...`)
    const outlook = yield* Outlook.of(recipe, cluster)
    const onMesh: Outlook.Variant = (layers) => variant([...(whole ? [shared] : []), ...layers])
    const better = outlook.prediction.fits ? null : yield* Outlook.smallestChange(outlook, cluster, onMesh)
    yield* draw(input, outlook, cluster)
    if (input.json)
      return yield* printJson({ ...facts(outlook), ...(better === null ? {} : { better: facts(better) }) })
    yield* print(Text.one(outlook, cluster, input.samples ?? null))
    if (outlook.prediction.fits) return
    yield* print(
      better === null
        ? "\nNo change that is known here makes it fit: more devices, or devices with more memory."
        : `\nThe smallest change that makes it fit: ${better.change}.\n\n${Text.one(better, cluster, input.samples ?? null)}`
    )
  }).pipe(Effect.scoped, Effect.provide(Backends.layer(input)))
})

const searched = Effect.fnUntraced(function* (
  input: PlanInput,
  cluster: Cluster.Cluster,
  recipe: Parameters<typeof Outlook.search>[0],
  variant: Outlook.Variant
) {
  const found = yield* Outlook.search(recipe, cluster, variant)
  const [best] = found
  if (best === undefined) {
    if (input.json) return yield* printJson({ plans: [] })
    return yield* print(
      `${recipe.name} fits on ${input.devices} in no way that was tried: more devices, or a smaller batch`
    )
  }
  yield* draw(input, best, cluster)
  if (input.json) return yield* printJson({ plans: found.map(facts) })
  yield* print(`${Text.many(found)}\n\nThe fastest:\n\n${Text.one(best, cluster, input.samples ?? null)}`)
})

const draw = Effect.fnUntraced(function* (
  { picture, samples }: PlanInput,
  outlook: Outlook.Outlook,
  cluster: Cluster.Cluster
) {
  if (picture === undefined) return
  const fs = yield* FileSystem.FileSystem
  const epoch =
    samples === undefined ? [] : [["an epoch", Text.secondsText(samples / outlook.speed.samplesPerSecond)] as const]
  yield* fs.writeFileString(picture, Picture.html(outlook, cluster, epoch)).pipe(
    Effect.mapError(
      (e) =>
        new RecipeError({
          key: "--picture",
          problem: `${picture} cannot be written: ${e.message}`,
          hint: "another file"
        })
    )
  )
  yield* note(`the picture: ${picture}`)
})
