/** Built-in recipes by name. Plain data: the `tessera` command checks it, and other code may spread it. */
import { cifar10Small } from "./cifar10Small.ts"
import { mnist } from "./mnist.ts"
import { vitB16Nemo } from "./vitB16Nemo.ts"
import { vitB16Rosetta } from "./vitB16Rosetta.ts"
import { vitG14Rosetta } from "./vitG14Rosetta.ts"
import { vitS16BigVision } from "./vitS16BigVision.ts"

export const recipes = {
  mnist,
  "cifar10-small": cifar10Small,
  "vit-b16-nemo": vitB16Nemo,
  "vit-b16-rosetta": vitB16Rosetta,
  "vit-g14-rosetta": vitG14Rosetta,
  "vit-s16-bigvision": vitS16BigVision
} as const
