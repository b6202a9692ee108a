/** Affine maps between named axes. */
import type * as Init from "@tessera/core/Init"
import * as Module from "@tessera/core/Module"
import * as T from "@tessera/core/Tensor"

/** Weight over input and output axes; a bias over the output axes, not decayed. */
export type Params<I extends string, O extends string> = {
  readonly weight: Module.Param<I | O>
  readonly bias?: Module.Param<O>
}

/** Declares a map `[.., from] -> [.., to]`: `Linear.params({ embed: 64 }, { mlp: 128 }, { weight, bias })`; `bias: null` has none. */
export const params = <
  const I extends Readonly<Record<string, number>>,
  const O extends Readonly<Record<string, number>>
>(
  from: I,
  to: O,
  init: { readonly weight: Init.Init; readonly bias: Init.Init | null }
): Params<keyof I & string, keyof O & string> => {
  const sizes: Readonly<Record<string, number>> = { ...from, ...to }
  return {
    weight: Module.param(sizes, init.weight) as unknown as Module.Param<(keyof I | keyof O) & string>,
    ...(init.bias === null ? {} : { bias: Module.param(to, init.bias, { decay: false }) })
  }
}

/** `x W + b`, summed over the axes `over`. `[.., over] -> [.., to]` */
export const apply = <A extends string, I extends A, O extends string>(
  p: Module.Tensors<Params<I, O>>,
  x: T.Tensor<A>,
  ...over: ReadonlyArray<I>
): T.Tensor<Exclude<A, I> | O> => {
  const weight: T.AnyTensor = p.weight
  const bias: T.AnyTensor | undefined = p.bias
  const y = T.contract(x as T.AnyTensor as T.Tensor<string>, weight as T.Tensor<string>, ...over) as T.AnyTensor
  return bias === undefined ? y : (T.add(y as T.Tensor<string>, bias as T.Tensor<string>) as T.AnyTensor)
}
