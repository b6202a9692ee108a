/**
 * The tensor surface: every function takes tensors with named axes and gives tensors. Calling a function is tracing it; nothing is computed until
 * a backend runs the program.
 */
export {
  constant,
  add,
  sub,
  mul,
  div,
  neg,
  scale,
  shift,
  broadcast,
  sum,
  mean,
  contract,
  cast,
  zeros,
  sizeOf,
  sumOf
} from "./primitives/algebra.ts"
export {
  exp,
  expm1,
  log,
  tanh,
  sqrt,
  erf,
  sigmoid,
  sin,
  cos,
  floor,
  abs,
  sign,
  maximum,
  minimum,
  less,
  equal,
  and,
  or,
  not,
  isFinite,
  select,
  relu,
  silu,
  randomBits
} from "./primitives/pointwise.ts"
export { max, argmax, cumsum } from "./primitives/reduce.ts"
export { rename, split, merge, slice, pad, concat } from "./primitives/axes.ts"
export { iota, lookup, oneHot, updateSlice } from "./primitives/index.ts"
export { scan, recompute } from "./primitives/control.ts"
export type { ScanInputs, ScanResults } from "./primitives/control.ts"
export { stopGradient, named, logitScale } from "./primitives/mark.ts"
export { place } from "./primitives/emit.ts"
export { gelu } from "./primitives/activation.ts"
export type { GeluKind } from "./primitives/activation.ts"
export { layerNorm, rmsNorm } from "./primitives/norm.ts"
export { attention } from "./primitives/attention.ts"
export type { AttentionOptions } from "./primitives/attention.ts"
export { softmaxCrossEntropy } from "./primitives/loss.ts"
export { softmax } from "./primitives/softmax.ts"
export { sigmoidCrossEntropy } from "./primitives/sigmoidCrossEntropy.ts"
export { input, isTensor } from "./Node.ts"
export type { AnyTensor, Role, Tensor, TensorType } from "./Node.ts"
