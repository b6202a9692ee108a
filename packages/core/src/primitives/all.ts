/** Every primitive by name: what laws, samples and kernel tables are complete over. */
import { geluBackwardP, geluP } from "./activation.ts"
import { addP, broadcastP, castP, constantP, contractP, divP, mulP, negP, subP, sumP } from "./algebra.ts"
import { attentionBackwardP, attentionP } from "./attention.ts"
import { concatP, mergeP, padP, renameP, sliceP, splitP } from "./axes.ts"
import { fusedP, recomputeP, scanP } from "./control.ts"
import { placeP } from "./emit.ts"
import { iotaP, lookupP, scatterAddP, updateSliceP } from "./index.ts"
import { crossEntropyBackwardP, crossEntropyP } from "./loss.ts"
import { namedP, stopGradientP } from "./mark.ts"
import { normBackwardP, normP } from "./norm.ts"
import { packP, unpackP } from "./pack.ts"
import {
  absP,
  andP,
  cosP,
  equalP,
  erfP,
  expP,
  expm1P,
  floorP,
  isFiniteP,
  lessP,
  logP,
  maximumP,
  minimumP,
  notP,
  orP,
  randomBitsP,
  selectP,
  sigmoidP,
  signP,
  sinP,
  sqrtP,
  tanhP
} from "./pointwise.ts"
import { argmaxP, cumsumP, maxP } from "./reduce.ts"
import { sigmoidCrossEntropyP } from "./sigmoidCrossEntropy.ts"
import { softmaxP } from "./softmax.ts"
import { adamwP } from "./update.ts"

/** The key is the primitive's own name. */
export const all = {
  place: placeP,
  stopGradient: stopGradientP,
  named: namedP,
  constant: constantP,
  iota: iotaP,
  cast: castP,
  add: addP,
  sub: subP,
  mul: mulP,
  div: divP,
  neg: negP,
  exp: expP,
  expm1: expm1P,
  log: logP,
  tanh: tanhP,
  sqrt: sqrtP,
  erf: erfP,
  sigmoid: sigmoidP,
  sin: sinP,
  cos: cosP,
  abs: absP,
  sign: signP,
  floor: floorP,
  maximum: maximumP,
  minimum: minimumP,
  less: lessP,
  equal: equalP,
  and: andP,
  or: orP,
  not: notP,
  isFinite: isFiniteP,
  select: selectP,
  randomBits: randomBitsP,
  broadcast: broadcastP,
  sum: sumP,
  max: maxP,
  argmax: argmaxP,
  cumsum: cumsumP,
  contract: contractP,
  rename: renameP,
  split: splitP,
  merge: mergeP,
  slice: sliceP,
  pad: padP,
  concat: concatP,
  pack: packP,
  unpack: unpackP,
  lookup: lookupP,
  scatterAdd: scatterAddP,
  updateSlice: updateSliceP,
  scan: scanP,
  recompute: recomputeP,
  fused: fusedP,
  gelu: geluP,
  geluBackward: geluBackwardP,
  norm: normP,
  normBackward: normBackwardP,
  attention: attentionP,
  attentionBackward: attentionBackwardP,
  softmax: softmaxP,
  crossEntropy: crossEntropyP,
  crossEntropyBackward: crossEntropyBackwardP,
  sigmoidCrossEntropy: sigmoidCrossEntropyP,
  adamw: adamwP
} as const

export type PrimitiveName = keyof typeof all
