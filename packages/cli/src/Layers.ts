/** A recipe from layers: defaults, preset, built-in recipe or file, flags. Remembers where every value came from. */
import { nearest, RecipeError } from "@tessera/core/Errors"
import * as Module from "@tessera/core/Module"
import * as Precision from "@tessera/core/Precision"
import * as Presets from "@tessera/models/presets"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"
import * as Experiment from "./Experiment.ts"
import * as Recipe from "./Recipe.ts"

export type Raw = { readonly [key: string]: unknown }

/** Values and their source, such as `recipe mnist`, `file vit.yaml`, `--set`. */
export interface Layer {
  readonly source: string
  readonly values: Raw
}

export interface Resolved {
  readonly recipe: Recipe.Recipe
  /** Source by path of every value: `optimizer.learningRate` -> `--set`. */
  readonly provenance: ReadonlyMap<string, string>
}

const isRecord = (x: unknown): x is Raw => typeof x === "object" && x !== null && !Array.isArray(x)

/** Later layers win; records are merged, everything else is replaced. */
const merge = (a: Raw, b: Raw): Raw => {
  const result: Record<string, unknown> = { ...a }
  for (const [key, value] of Object.entries(b)) {
    const old = result[key]
    result[key] = isRecord(old) && isRecord(value) && sameKind(old, value) ? merge(old, value) : value
  }
  return result
}

/** A layer that names a preset begins the model anew. */
const forgetModel = (all: Raw, { model }: Raw): Raw =>
  isRecord(model) && model["preset"] !== undefined ? { ...all, model: {} } : all

/** A head, optimizer, schedule or precision of another kind replaces the old one whole. */
const sameKind = (a: Raw, b: Raw): boolean =>
  ["kind", "name", "mode"].every((tag) => b[tag] === undefined || a[tag] === undefined || a[tag] === b[tag])

const fail = (key: string, problem: string, hint = "") => Result.fail(new RecipeError({ key, problem, hint }))

const meant = (name: string, known: ReadonlyArray<string>): string => {
  const near = nearest(name, known)
  return near === null ? `known: ${known.join(", ")}` : `did you mean ${near}?`
}

/** Options of a precision that was given by name so far. */
const withMode = (all: Raw, layer: Raw): Raw => {
  const [below, own] = [all["precision"] ?? Recipe.defaults.precision, layer["precision"]]
  return isRecord(own) && own["mode"] === undefined && typeof below === "string"
    ? { ...layer, precision: { mode: below, ...own } }
    : layer
}

/** `optimizer.learningRate=3e-4` as a layer; the value is JSON, or else text. */
export const assignment = (text: string): Result.Result<Layer, RecipeError> => {
  const at = text.indexOf("=")
  if (at < 1) return fail("--set", `"${text}" is no assignment`, "write key=value, such as optimizer.learningRate=3e-4")
  const path = text.slice(0, at).split(".")
  const value = valueOf(text.slice(at + 1))
  const values = path.reduceRight<unknown>((inner, key) => ({ [key]: inner }), value) as Raw
  return Result.succeed({ source: "--set", values })
}

const valueOf = (text: string): unknown => {
  if (/^[+-]?(\d|\.\d)/.test(text) && Number.isFinite(Number(text))) return Number(text)
  const parsed = Result.try(() => JSON.parse(text) as unknown)
  return Result.isSuccess(parsed) ? parsed.success : text
}

const variants: Readonly<Record<string, (c: VitConfig.VitConfig, classes: number) => VitConfig.VitConfig>> = {
  none: (c) => c,
  nemo: Presets.nemoPretrain,
  rosetta: Presets.rosettaPretrain,
  bigVision: Presets.bigVisionImagenet
}

/** What lies below a model's own fields: its preset in its variant, or the defaults with a linear head. */
const modelBase = (model: Raw, classes: number): Result.Result<Layer, RecipeError> => {
  const { preset, variant = "none" } = model
  const linear = { kind: "linear", classes, kernel: "zeros", bias: 0 }
  if (preset === undefined)
    return Result.succeed({ source: "default", values: { model: { ...VitConfig.defaults, head: linear } } })
  const names = Object.keys(Presets.presets)
  if (typeof preset !== "string" || !names.includes(preset))
    return fail(
      "model.preset",
      `unknown preset ${JSON.stringify(preset)}`,
      meant(typeof preset === "string" ? preset : "", names)
    )
  if (typeof variant !== "string" || !(variant in variants))
    return fail(
      "model.variant",
      `unknown variant ${JSON.stringify(variant)}`,
      meant(String(variant), Object.keys(variants))
    )
  const config = variants[variant]!(Presets.get(preset as Presets.Name), classes)
  const { head } = config
  const fitted = head.kind === "none" ? linear : { ...head, classes }
  return Result.succeed({
    source: `preset ${preset}${variant === "none" ? "" : ` (${variant})`}`,
    values: { model: { ...config, head: fitted } }
  })
}

/** The last layer that says what is in force: for every value of the recipe. */
const trace = (recipe: Raw, layers: ReadonlyArray<Layer>): ReadonlyMap<string, string> => {
  const provenance = new Map<string, string>()
  const walk = (value: unknown, path: string): void => {
    if (isRecord(value))
      for (const [key, inner] of Object.entries(value)) walk(inner, path === "" ? key : `${path}.${key}`)
    else provenance.set(path, layers.findLast(({ values }) => same(at(values, path), value))?.source ?? "default")
  }
  walk(recipe, "")
  return provenance
}

const same = (a: unknown, b: unknown): boolean => a !== undefined && JSON.stringify(a) === JSON.stringify(b)

/** `model: "B/16"` is short for `model: { preset: "B/16" }`. */
const expanded = (layer: Layer): Layer =>
  typeof layer.values["model"] === "string"
    ? { ...layer, values: { ...layer.values, model: { preset: layer.values["model"] } } }
    : layer

/** Merges the layers, the first the weakest, and checks the result. */
export const resolve = (given: ReadonlyArray<Layer>): Result.Result<Resolved, RecipeError> =>
  Result.gen(function* () {
    const layers = given.map(expanded)
    const unknown = layers.flatMap(({ values }) => unknownKeys(values))[0]
    if (unknown !== undefined) return yield* Result.fail(unknown)
    const asked = layers.reduce<Raw>((all, { values }) => merge(forgetModel(all, values), withMode(all, values)), {})
    const record = (key: string): Raw => (isRecord(asked[key]) ? asked[key] : {})
    const named = (key: string, table: Readonly<Record<string, object>>, first: string) => {
      const { name = first } = record(key)
      return typeof name === "string" && name in table
        ? Result.succeed({ source: "default", values: { [key]: { name, ...table[name] } } })
        : fail(`${key}.name`, `unknown ${key} ${JSON.stringify(name)}`, meant(String(name), Object.keys(table)))
    }
    const { fsdp } = record("strategy")
    const flat = isRecord(fsdp) ? { strategy: { fsdp: Recipe.fsdpDefaults(fsdp["unit"]) } } : {}
    const { classes } = record("data")
    const model = yield* modelBase(record("model"), typeof classes === "number" ? classes : 1000)
    const below = [
      { source: "default", values: merge(Recipe.defaults, flat) },
      yield* named("optimizer", Recipe.optimizerDefaults, "adamw"),
      yield* named("schedule", Recipe.scheduleDefaults, "cosine"),
      model
    ]
    const { model: merged, ...rest } = merge(
      below.reduce<Raw>((values, layer) => merge(values, layer.values), {}),
      asked
    )
    const { preset: _preset, variant: _variant, ...fields } = isRecord(merged) ? merged : {}
    if (typeof rest["precision"] === "string" || isRecord(rest["precision"]))
      yield* Precision.make(rest["precision"] as string | Precision.Options)
    const decoded = yield* decode({ ...rest, model: fields })
    const [wrong] = Recipe.problems(decoded)
    if (wrong !== undefined) return yield* Result.fail(wrong)
    const leaves = Module.leaves(Vit.make(decoded.model).params)
    const lost = Precision.optimizerProblem(Experiment.optimizer(decoded), leaves, Experiment.precision(decoded))
    if (lost !== null) return yield* Result.fail(lost)
    return { recipe: decoded, provenance: trace(decoded, [...below, ...layers]) }
  })

const decode = (values: Raw): Result.Result<Recipe.Recipe, RecipeError> =>
  Schema.decodeUnknownResult(Recipe.Recipe)(values, { errors: "all", onExcessProperty: "error" }).pipe(
    Result.mapError((error) => {
      const { issues } = SchemaIssue.makeFormatterStandardSchemaV1()(error.issue)
      const [first] = issues
      const key = (first?.path ?? []).map((p) => (typeof p === "object" ? String(p.key) : String(p))).join(".")
      const found = key === "" ? undefined : at(values, key)
      const shown = found === undefined ? "is missing" : `is ${JSON.stringify(found)}`
      return new RecipeError({ key, problem: shown, hint: (first?.message ?? error.message).replaceAll("\n", " ") })
    })
  )

const at = (values: Raw, path: string): unknown =>
  path
    .split(".")
    .reduce<unknown>((v, key) => (typeof v === "object" && v !== null ? (v as Raw)[key] : undefined), values)

type Known = { readonly [key: string]: Known | null }

const fieldsOf = (schema: { readonly fields: Readonly<Record<string, unknown>> }): Known =>
  Object.fromEntries(
    Object.entries(schema.fields).map(([key, field]) => {
      const nested = field as { readonly fields?: Readonly<Record<string, unknown>> }
      return [key, nested.fields === undefined ? null : fieldsOf({ fields: nested.fields })]
    })
  )

const union = (table: Readonly<Record<string, { readonly fields: Readonly<Record<string, unknown>> }>>): Known =>
  Object.assign({}, ...Object.values(table).map(fieldsOf)) as Known

const known: Known = {
  ...fieldsOf(Recipe.Recipe),
  model: {
    preset: null,
    variant: null,
    headDim: null,
    ...Object.fromEntries(Object.keys(VitConfig.defaults).map((k) => [k, null])),
    patch: null,
    hidden: null,
    mlp: null,
    heads: null,
    layers: null,
    imageSize: { height: null, width: null },
    head: { kind: null, classes: null, kernel: null, bias: null, width: null, size: null }
  },
  optimizer: union(Recipe.optimizers),
  precision: fieldsOf(Recipe.precisions),
  recompute: fieldsOf(Recipe.recomputation),
  strategy: { ...fieldsOf(Recipe.strategy), fsdp: fieldsOf(Recipe.fsdp) },
  schedule: union(Recipe.schedules)
}

/** Keys that no recipe has, with the nearest that one has. */
const unknownKeys = (values: Raw, among: Known = known, prefix = ""): ReadonlyArray<RecipeError> =>
  Object.entries(values).flatMap(([key, value]) => {
    const path = prefix === "" ? key : `${prefix}.${key}`
    if (!(key in among))
      return [
        new RecipeError({
          key: path,
          problem: "no such setting",
          hint: meant(
            path,
            Object.keys(among).map((k) => (prefix === "" ? k : `${prefix}.${k}`))
          )
        })
      ]
    const inner = among[key]
    return inner !== null && inner !== undefined && isRecord(value) ? unknownKeys(value, inner, path) : []
  })
