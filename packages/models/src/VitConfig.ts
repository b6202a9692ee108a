/** What a vision transformer is made of: a record, checked by Schema. */
import { nearest, RecipeError } from "@tessera/core/Errors"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"

const count = (least: number) => Schema.Int.pipe(Schema.check(Schema.isGreaterThanOrEqualTo(least)))
const rate = Schema.Finite.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: 1, exclusiveMaximum: true })))
const optional = <S extends Schema.Constraint>(schema: S, value: S["Encoded"]) =>
  Schema.withDecodingDefaultKey<S>(Effect.succeed(value))(schema)

/** What follows pooling. */
export const Head = Schema.Union([
  Schema.Struct({ kind: Schema.Literal("none") }),
  Schema.Struct({
    kind: Schema.Literal("linear"),
    classes: count(1),
    kernel: optional(Schema.Literals(["zeros", "normal"]), "zeros"),
    bias: optional(Schema.Finite, 0)
  }),
  Schema.Struct({
    kind: Schema.Literal("rosettaMlp"),
    classes: count(1),
    width: optional(count(1), 768),
    bias: optional(Schema.Finite, 0)
  }),
  Schema.Struct({ kind: Schema.Literal("nemoMlp"), classes: count(1), bias: optional(Schema.Finite, -10) }),
  Schema.Struct({ kind: Schema.Literal("projection"), size: count(1) })
])
export type Head = typeof Head.Type

/** Sizes and rates without relations between them. `VitConfig` checks these too. */
const Fields = Schema.Struct({
  /** Pixels. */
  imageSize: optional(Schema.Struct({ height: count(1), width: count(1) }), { height: 224, width: 224 }),
  /** Side of a patch, in pixels. */
  patch: count(1),
  channels: optional(count(1), 3),
  /** Width of a token. */
  hidden: count(1),
  /** Width between the two maps of an MLP. */
  mlp: count(1),
  heads: count(1),
  /** Width of a head; hidden / heads unless given. */
  headDim: Schema.optionalKey(count(1)),
  layers: count(0),
  /** Class tokens before the patches: 1 in ViT, 8 in NeMo, 0 for none. */
  classTokens: optional(count(0), 1),
  positions: optional(Schema.Literals(["learned", "sinCos2d", "none"]), "learned"),
  /** Of sinCos2d: the ratio of its longest wave to its shortest; the shortest is 2 pi patches long. Small grids need few long waves. */
  positionTemperature: optional(Schema.Finite.pipe(Schema.check(Schema.isGreaterThan(1))), 10_000),
  patchBias: optional(Schema.Boolean, true),
  qkvBias: optional(Schema.Boolean, true),
  /** Layer norm of the embedded tokens before the first block. */
  preNorm: optional(Schema.Boolean, false),
  activation: optional(Schema.Literals(["gelu", "geluTanh", "geluQuick", "relu"]), "gelu"),
  /** Added to the variance in every layer norm. */
  epsilon: optional(Schema.Finite.pipe(Schema.check(Schema.isGreaterThan(0))), 1e-6),
  /** After the embedding, after attention out and after MLP out. */
  dropout: optional(rate, 0),
  /** Of the activations inside of an MLP. */
  mlpDropout: optional(rate, 0),
  /** Of attention probabilities. */
  attentionDropout: optional(rate, 0),
  /** Rate at which the last block's branches are skipped, a sample at a time; grows linearly from 0 at the first. */
  dropPath: optional(rate, 0),
  /** Share of patches left out in training. */
  dropPatch: optional(rate, 0),
  pooling: optional(Schema.Literals(["token", "meanPatches", "meanAll", "attention"]), "token"),
  head: optional(Head, { kind: "none" }),
  initialisation: optional(Schema.Literals(["rosetta", "nemo"]), "rosetta")
})

type Fields = typeof Fields.Type

export interface Problem {
  readonly key: keyof Fields
  readonly problem: string
  readonly hint: string
}

/** Relations between fields that do not hold. */
export const problems = (c: Fields): ReadonlyArray<Problem> => {
  const found: Array<Problem> = []
  if (c.headDim === undefined && c.hidden % c.heads !== 0) {
    const legal = neighbours(c.heads, (n) => c.hidden % n === 0, c.hidden)
    found.push({
      key: "heads",
      problem: `hidden ${c.hidden} is not divisible by heads ${c.heads}`,
      hint: `nearest legal: ${legal}`
    })
  }
  const { height, width } = c.imageSize
  if (height % c.patch !== 0 || width % c.patch !== 0) {
    const legal = neighbours(c.patch, (n) => height % n === 0 && width % n === 0, Math.min(height, width))
    found.push({
      key: "patch",
      problem: `image ${height} x ${width} is not divisible by patch ${c.patch}`,
      hint: `nearest legal: ${legal}`
    })
  }
  if (c.pooling === "token" && c.classTokens === 0) {
    found.push({
      key: "pooling",
      problem: "pooling token needs a class token, classTokens is 0",
      hint: "use meanPatches or attention, or classTokens 1"
    })
  }
  if (c.positions === "sinCos2d" && c.hidden % 4 !== 0) {
    found.push({
      key: "positions",
      problem: `sinCos2d needs a hidden width divisible by 4, found ${c.hidden}`,
      hint: "use learned positions"
    })
  }
  return found
}

/** "4 or 6": the legal values on either side of an illegal one. */
const neighbours = (value: number, legal: (n: number) => boolean, most: number): string => {
  let [below, above] = [Math.min(value, most), value + 1]
  while (below > 0 && !legal(below)) below--
  while (above <= most && !legal(above)) above++
  return [...(below > 0 ? [below] : []), ...(above <= most ? [above] : [])].join(" or ")
}

/** A vision transformer. Fields with defaults may be left out of the encoded form. */
export const VitConfig = Fields.pipe(
  Schema.check(
    Schema.makeFilter((c: Fields) =>
      problems(c).map(({ hint, key, problem }) => ({ path: [key], issue: `${problem}; ${hint}` }))
    )
  )
)
export type VitConfig = Fields

/** Fields with their defaults filled in; sizes that must be given are not among them. */
export const defaults = {
  imageSize: { height: 224, width: 224 },
  channels: 3,
  classTokens: 1,
  positions: "learned",
  positionTemperature: 10_000,
  patchBias: true,
  qkvBias: true,
  preNorm: false,
  activation: "gelu",
  epsilon: 1e-6,
  dropout: 0,
  mlpDropout: 0,
  attentionDropout: 0,
  dropPath: 0,
  dropPatch: 0,
  pooling: "token",
  head: { kind: "none" },
  initialisation: "rosetta"
} as const satisfies Partial<VitConfig>

/** The sizes that have no default, and whatever differs from the defaults. */
export type Given = Pick<VitConfig, "patch" | "hidden" | "mlp" | "heads" | "layers"> & Partial<VitConfig>

/** Fills in the defaults. */
export const make = (given: Given): VitConfig => ({ ...defaults, ...given })

/** Reads a configuration from JSON-like data. Fails with a `RecipeError` that names the key, also for an unknown one. */
export const decode = (input: unknown): Result.Result<VitConfig, RecipeError> => {
  const unknown =
    typeof input === "object" && input !== null ? Object.keys(input).find((k) => !(k in Fields.fields)) : undefined
  if (unknown !== undefined) {
    const meant = nearest(unknown, Object.keys(Fields.fields))
    return Result.fail(
      new RecipeError({
        key: unknown,
        problem: "no such setting of a vision transformer",
        hint: meant === null ? "" : `did you mean ${meant}?`
      })
    )
  }
  return Schema.decodeUnknownResult(Fields)(input).pipe(
    Result.mapError((error) => new RecipeError({ key: "", problem: String(error), hint: "" })),
    Result.flatMap(check)
  )
}

/** The configuration itself, or its first problem. */
export const check = (config: VitConfig): Result.Result<VitConfig, RecipeError> => {
  const [first] = problems(config)
  return first === undefined ? Result.succeed(config) : Result.fail(new RecipeError(first))
}

/** Patches down and across. */
export const grid = (c: VitConfig): { readonly rows: number; readonly cols: number } => ({
  rows: c.imageSize.height / c.patch,
  cols: c.imageSize.width / c.patch
})

/** Tokens in evaluation: class tokens and patches. */
export const sequenceLength = (c: VitConfig): number => c.classTokens + grid(c).rows * grid(c).cols

/** Width of a head. */
export const headDim = (c: VitConfig): number => c.headDim ?? c.hidden / c.heads
