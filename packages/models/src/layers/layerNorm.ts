/** Layer normalisation over `embed` with gain and bias, neither decayed. */
import * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import * as T from "@tessera/core/Tensor"

export type Params = { readonly gamma: Module.Param<"embed">; readonly beta: Module.Param<"embed"> }

/** Gain one, bias zero. */
export const params = (embed: number): Params => ({
  gamma: Module.param({ embed }, Init.ones, { decay: false }),
  beta: Module.param({ embed }, Init.zeros, { decay: false })
})

/** `[.., embed] -> [.., embed]` @source arXiv:1607.06450 */
export const apply = <A extends string>(
  p: Module.Tensors<Params>,
  x: T.Tensor<A | "embed">,
  epsilon: number
): T.Tensor<A | "embed"> => T.layerNorm<A | "embed", "embed">(x, "embed", epsilon, p.gamma, p.beta)
