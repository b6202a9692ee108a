/** Which distribution each kind of parameter of a vision transformer begins with: a record of values, made once and passed to layers. */
import * as Init from "@tessera/core/Init"

/** Initial values by the part a parameter plays; kernels are told the axes of their input. */
export interface Initialisation {
  /** Projections into a wider or another space: query, key, value, the first of an MLP. */
  readonly kernel: (...fanIn: ReadonlyArray<string>) => Init.Init
  /** Projections that write into the residual stream: attention out, the last of an MLP. */
  readonly output: (...fanIn: ReadonlyArray<string>) => Init.Init
  /** The embedding of one patch; `fanIn` is patch rows x patch columns x channels. */
  readonly patch: (fanIn: number) => { readonly weight: Init.Init; readonly bias: Init.Init }
  readonly attentionBias: Init.Init
  readonly mlpBias: Init.Init
  readonly positions: Init.Init
  readonly classToken: Init.Init
}

/**
 * All kernels N(0, 0.02), those into the residual stream N(0, 0.02 / sqrt(2 layers)), biases zero; the patch embedding as torch.nn.Linear, uniform
 * within 1 / sqrt(fan in).
 * @source NVIDIA/NeMo@r1.23.0 nemo/collections/nlp/modules/common/megatron/utils.py, vision/modules/vit/vit_backbone.py
 */
export const nemo = (layers: number): Initialisation => ({
  kernel: () => Init.normal(0.02),
  output: () => Init.normal(0.02 / Math.sqrt(2 * Math.max(1, layers))),
  patch: (fanIn) => ({ weight: Init.uniform(1 / Math.sqrt(fanIn)), bias: Init.uniform(1 / Math.sqrt(fanIn)) }),
  attentionBias: Init.zeros,
  mlpBias: Init.zeros,
  positions: Init.normal(0.02),
  classToken: Init.zeros
})

/**
 * Kernels Xavier uniform, MLP biases N(0, 1e-6), positions N(0, 0.02), class token zero; the patch embedding normal with variance 1 / fan in.
 * @source NVIDIA/JAX-Toolbox@23.10-release rosetta/rosetta/projects/vit/layers.py
 */
export const rosetta: Initialisation = {
  kernel: (...fanIn) => Init.xavierUniform(...fanIn),
  output: (...fanIn) => Init.xavierUniform(...fanIn),
  patch: () => ({ weight: Init.fanIn("patchRow", "patchCol", "channel"), bias: Init.zeros }),
  attentionBias: Init.zeros,
  mlpBias: Init.normal(1e-6),
  positions: Init.normal(0.02),
  classToken: Init.zeros
}

/** From the name in a configuration. */
export const byName: Readonly<Record<"nemo" | "rosetta", (layers: number) => Initialisation>> = {
  nemo,
  rosetta: () => rosetta
}
