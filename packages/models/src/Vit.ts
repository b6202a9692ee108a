/**
 * The vision transformer: patches, class tokens, positions, pre-norm blocks, pooling, head. Every knob is a field of `VitConfig`.
 * @source arXiv:2010.11929
 */
import * as Axis from "@tessera/core/Axis"
import { invalid } from "@tessera/core/Errors"
import * as Module from "@tessera/core/Module"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import * as Block from "./layers/block.ts"
import * as Dropout from "./layers/dropout.ts"
import * as Heads from "./layers/heads.ts"
import * as Initialisation from "./layers/initialisation.ts"
import * as LayerNorm from "./layers/layerNorm.ts"
import type * as Linear from "./layers/linear.ts"
import * as PatchEmbed from "./layers/patchEmbed.ts"
import * as Positions from "./layers/positions.ts"
import * as VitConfig from "./VitConfig.ts"

/** Pictures, normalised: `[batch, row, col, channel]`. */
export type Image = T.Tensor<"batch" | "row" | "col" | "channel">
type Tokens = T.Tensor<"batch" | "seq" | "embed">

/** Parameters. Those of the blocks have the axis `layers`. */
export type Params = {
  readonly patchEmbed: Linear.Params<"patchRow" | "patchCol" | "channel", "embed">
  readonly classToken?: Module.Param<"class" | "embed">
  /** Over class tokens, then patches. */
  readonly positions?: Module.Param<"seq" | "embed">
  readonly preNorm?: LayerNorm.Params
  readonly blocks: Module.Stacked<Block.Params>
  readonly finalNorm: LayerNorm.Params
  readonly pool?: Heads.PoolParams
  readonly head?: Module.ParamTree
}

export interface VitOutput {
  /** `[batch, classes]`, with a head that classifies. */
  readonly logits?: T.Tensor<"batch" | "classes">
  /** `[batch, feature]`, with a projection; not normalised. */
  readonly projected?: T.Tensor<"batch" | "feature">
  /** `[batch, embed]` before the head. */
  readonly pooled: T.Tensor<"batch" | "embed">
  /** `[batch, seq, embed]` after the final norm; class tokens first. */
  readonly tokens: Tokens
  /** What was asked for: `features` `[layers, batch, seq, embed]`, `attention` `[layers, batch, heads, seq, keySeq]`. */
  readonly captured: Readonly<Record<string, T.AnyTensor>>
}

export type Vit = Module.Module<Params, Image, VitOutput>

/**
 * The model of a configuration. Throws `ProgramError` when the configuration contradicts itself; decode it with `VitConfig.decode` first to get a value.
 *
 * @example
 * const vit = Vit.make(VitConfig.make({ patch: 16, hidden: 768, mlp: 3072, heads: 12, layers: 12 }))
 */
export const make = (config: VitConfig.VitConfig, capture: Block.Capture = {}): Vit => {
  const [wrong] = VitConfig.problems(config)
  if (wrong !== undefined) invalid("Vit.make", `${wrong.problem}; ${wrong.hint}`)
  const init = Initialisation.byName[config.initialisation](config.layers)
  const embedding = embed(config, init)
  const sizes = { hidden: config.hidden, heads: config.heads, headDim: VitConfig.headDim(config), mlp: config.mlp }
  const blocks = Module.stack(Block.make(sizes, init, { ...config, capture }), config.layers)
  const pooling = config.pooling === "attention" ? Heads.attentionPool(sizes, init, config) : null
  const { head } = config
  const classifier = head.kind === "none" || head.kind === "projection" ? null : Heads.classify(config.hidden, head)
  const projection = head.kind === "projection" ? Heads.project(config.hidden, head.size) : null
  const last = classifier?.params ?? projection?.params
  const params: Params = {
    ...embedding.params,
    blocks: blocks.params,
    finalNorm: LayerNorm.params(config.hidden),
    ...(pooling === null ? {} : { pool: pooling.params }),
    ...(last === undefined ? {} : { head: last })
  }
  return Module.make(params, (p, image: Image, call) => {
    const embedded = embedding.apply(p, image, call)
    const dropPath = call.train ? Dropout.pathRates(config.dropPath, config.layers) : undefined
    const encoded = Module.run(
      blocks,
      "blocks",
      p.blocks,
      { value: embedded, ...(dropPath === undefined ? {} : { constants: { dropPath } }) },
      call
    )
    const tokens = LayerNorm.apply<"batch" | "seq">(p.finalNorm, encoded.value, config.epsilon)
    const pooled =
      config.pooling === "attention"
        ? Module.run(pooling!, "pool", p.pool!, tokens, call)
        : Heads.pool(tokens, config.pooling, config.classTokens)
    return {
      ...(classifier === null ? {} : { logits: Module.run(classifier, "head", p.head!, pooled, call) }),
      ...(projection === null ? {} : { projected: Module.run(projection, "head", p.head!, pooled, call) }),
      pooled,
      tokens,
      captured: encoded.captured
    }
  })
}

type EmbedParams = Pick<Params, "patchEmbed" | "classToken" | "positions" | "preNorm">

/** Everything before the first block. `[batch, row, col, channel] -> [batch, seq, embed]` */
const embed = (
  config: VitConfig.VitConfig,
  init: Initialisation.Initialisation
): Module.Module<EmbedParams, Image, Tokens> => {
  const { classTokens, hidden } = config
  const patchEmbed = PatchEmbed.make(config, init, { bias: config.patchBias })
  const params: EmbedParams = {
    patchEmbed: patchEmbed.params,
    ...(classTokens === 0 ? {} : { classToken: Module.param({ class: classTokens, embed: hidden }, init.classToken) }),
    ...(config.positions === "learned"
      ? { positions: Module.param({ seq: VitConfig.sequenceLength(config), embed: hidden }, init.positions) }
      : {}),
    ...(config.preNorm ? { preNorm: LayerNorm.params(hidden) } : {})
  }
  return Module.make(params, (p, image, call) => {
    checkImage(config, image)
    const patches = Module.run(patchEmbed, "patchEmbed", p.patchEmbed, image, call)
    const waved =
      config.positions === "sinCos2d"
        ? T.add(patches, Positions.sinCos2d(VitConfig.grid(config), hidden, config.positionTemperature))
        : patches
    const joined = join(p.classToken, waved, "patch")
    const placed = p.positions === undefined ? joined : T.add(joined, p.positions)
    const kept = call.train && config.dropPatch > 0 ? dropPatches(placed, config, call) : placed
    const dropped = Dropout.apply(kept, config.dropout, "embeddingDropout", call)
    return p.preNorm === undefined ? dropped : LayerNorm.apply<"batch" | "seq">(p.preNorm, dropped, config.epsilon)
  })
}

/** Class tokens, then the rest: `[class, embed] x [batch, (axis), embed] -> [batch, seq, embed]`. */
const join = <N extends string>(
  classToken: T.AnyTensor | undefined,
  rest: T.Tensor<"batch" | "embed" | N>,
  axis: N
): Tokens =>
  classToken === undefined
    ? (T.rename(rest as T.Tensor<any>, axis, "seq") as Tokens)
    : (T.concat<any, string, "seq", "float">(
        [
          [classToken, "class"],
          [rest, axis]
        ],
        "seq"
      ) as T.AnyTensor)

/** Leaves out patches; class tokens stay. `[batch, seq, embed] -> [batch, seq, embed]` with fewer tokens. @source arXiv:2212.00794 */
const dropPatches = (tokens: Tokens, config: VitConfig.VitConfig, call: Module.Call): Tokens => {
  const { classTokens } = config
  const patches = T.slice(tokens, "seq", {
    to: "patch",
    start: classTokens,
    size: T.sizeOf(tokens, "seq") - classTokens
  })
  const kept = Dropout.patches(patches, config.dropPatch, call)
  const first = classTokens === 0 ? undefined : T.slice(tokens, "seq", { to: "class", start: 0, size: classTokens })
  return join(first, kept, "kept")
}

const checkImage = (config: VitConfig.VitConfig, image: Image): void => {
  const expected = { row: config.imageSize.height, col: config.imageSize.width, channel: config.channels }
  for (const [name, size] of Object.entries(expected)) {
    if (T.sizeOf(image, name) !== size)
      invalid("Vit", `pictures are ${Axis.print(image.type.axes)}, the configuration says ${name}=${size}`)
  }
}

/** Logits alone. `[batch, row, col, channel] -> [batch, classes]`; throws `ProgramError` when the head does not classify. */
export const classifier = (
  config: VitConfig.VitConfig
): Module.Module<Params, Image, T.Tensor<"batch" | "classes">> => {
  const vit = make(config)
  return Module.make(
    vit.params,
    (p, image, call) =>
      vit.apply(p, image, call).logits ?? invalid("Vit.classifier", `head ${config.head.kind} gives no logits`)
  )
}

/**
 * Attention maps, for pictures and rollout: `[batch, row, col, channel] -> [layers, batch, heads, seq, keySeq]` softmax probabilities, from the same
 * parameters. Evaluation only.
 */
export const attentionWeights = (
  config: VitConfig.VitConfig
): Module.Module<Params, Image, T.Tensor<"layers" | "batch" | "heads" | "seq" | "keySeq">> => {
  const vit = make(config, { attention: true })
  return Module.make(
    vit.params,
    (p, image, call) =>
      vit.apply(p, image, call).captured["attention"] ??
      invalid("Vit.attentionWeights", "a model of 0 layers has no attention")
  )
}

/** What a count or a cost is taken of, where it is not the configuration's own head. */
export interface Options {
  readonly head?: VitConfig.Head
}

/** Number of parameters, from the declarations. */
export const parameterCount = (config: VitConfig.VitConfig, options: Options = {}): number =>
  Module.count(make({ ...config, ...options }).params)

/** A program of the forward pass in evaluation. */
export const forward = (config: VitConfig.VitConfig, batch: number, capture: Block.Capture = {}) => {
  const vit = make(config, capture)
  const { height, width } = config.imageSize
  const image = T.input({
    axes: Axis.list({ batch, row: height, col: width, channel: config.channels }),
    dtype: "f32"
  }) as Image
  const params = Module.inputs(vit.params)
  return Program.make({ params, image }, vit.apply(params, image, Module.evaluation))
}

/** FLOPs of contractions in one picture's forward pass, 2 a multiply-add, counted on the traced program. */
export const forwardFlops = (config: VitConfig.VitConfig, options: Options = {}): number =>
  Program.cost(forward({ ...config, ...options }, 1)).contractionFlops
