/** Two small towers with dropout and drop path, so that the same randomness has to come back, and a loss over pairs. */
import type * as Accumulate from "@tessera/core/Accumulate"
import * as Axis from "@tessera/core/Axis"
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import type * as Step from "@tessera/core/Step"
import type { Subject } from "@tessera/core/testing/Subject"
import { subject } from "@tessera/core/testing/Subject"
import * as T from "@tessera/core/Tensor"
import * as Dropout from "@tessera/models/layers/dropout"
import * as UnitNorm from "@tessera/models/layers/unitNorm"
import * as Contrastive from "@tessera/models/losses/contrastive"
import * as Sigmoid from "@tessera/models/losses/sigmoid"

export type Pairs = Sigmoid.Pairs<"joint">
export type Compare = (pairs: Pairs) => Accumulate.Loss

const contrastive =
  (options: Contrastive.Options): Compare =>
  (pairs) => ({ ...Contrastive.loss(pairs, options), metrics: Contrastive.correct(pairs, options) })

/** Every loss over pairs that there is. */
export const compares = {
  "own rows": contrastive({}),
  "whole matrix": contrastive({ localLoss: false }),
  "own slices": contrastive({ localLoss: false, gatherWithGrad: false, ranks: 4 }),
  biased: contrastive({ gatherWithGrad: false, ranks: 4, allowBiased: true }),
  sigmoid: (pairs) => Sigmoid.loss(pairs)
} satisfies Readonly<Record<string, Compare>>

type Any = T.Tensor<any>

const tower = (embed: number, mlp: number) =>
  Module.make(
    {
      stem: Module.param({ pixel: 3, embed }, Init.fanIn("pixel")),
      up: Module.param({ embed, mlp }, Init.fanIn("embed")),
      down: Module.param({ mlp, embed }, Init.fanIn("mlp")),
      out: Module.param({ embed, joint: 3 }, Init.fanIn("embed"))
    },
    (p, pixels: T.Tensor<"batch" | "pixel">, call): T.Tensor<"batch" | "joint"> => {
      const x = T.contract(pixels, p.stem, "pixel") as Any
      const wide = T.gelu(T.contract(x, p.up as Any, "embed"))
      const branch = Dropout.apply(T.contract(wide, p.down as Any, "mlp"), 0.2, "mlp", call)
      const y = T.add(x, Dropout.path(branch, T.constant(0.3), "branch", call) as Any)
      return UnitNorm.apply(T.contract(y, p.out as Any, "embed"), "joint")
    }
  )

export interface Options {
  readonly negatives?: "global" | "microbatch"
  /** Natural logarithm of the scale. */
  readonly logScale?: number
  /** What the call of the towers is turned into. */
  readonly call?: (call: Module.Call, batch: number) => Module.Call
}

export const towers = (
  compare: Compare,
  { call: turn = (c) => c, logScale = 2, negatives = "global" }: Options = {}
): Subject =>
  subject({
    name: "small towers",
    sizes: { batch: [8], embed: [4], mlp: [4] },
    make: ({ batch, embed, mlp }) => {
      const [image, text] = [tower(embed!, mlp!), tower(embed!, mlp!)]
      const rows = Axis.list({ batch: batch! })
      const loss: Step.PairwiseLoss<any, any> = {
        negatives,
        features: (p: any, b: any, call) => {
          const own = turn(call, T.sizeOf(b.examples, "batch"))
          return {
            image: Module.run(image, "image", p.image, b.images, own),
            text: Module.run(text, "text", p.text, b.texts, own)
          }
        },
        loss: (f: any, p: any, b: any) =>
          compare({ image: f.image, text: f.text, logScale: p.logScale, bias: p.bias, weights: b.weights })
      }
      return {
        params: {
          image: image.params,
          text: text.params,
          ...Sigmoid.params(),
          logScale: Module.param({}, Init.constantOf(logScale), { decay: false })
        },
        batch: {
          examples: { axes: rows, dtype: "u32" as const },
          images: { axes: Axis.list({ batch: batch!, pixel: 3 }), dtype: "f32" as const },
          texts: { axes: Axis.list({ batch: batch!, pixel: 3 }), dtype: "f32" as const },
          weights: { axes: rows, dtype: "f32" as const }
        },
        loss
      }
    }
  })
