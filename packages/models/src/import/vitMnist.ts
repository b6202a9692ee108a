/** A small vision transformer trained on MNIST: 499,722 parameters, 97.21 % of 10,000 test digits right. */
import * as VitConfig from "../VitConfig.ts"
import type { NameTable } from "./NameTable.ts"
import { vitPytorch } from "./vitNames.ts"

/**
 * Pictures are `(pixel / 255 - 0.1307) / 0.3081`, `[batch, row=28, col=28, channel=1]`.
 * @source researchase/vit-mnist-explorations, vit_mnist_gpu.pt (MIT)
 */
export const config: VitConfig.VitConfig = VitConfig.make({
  imageSize: { height: 28, width: 28 },
  patch: 4,
  channels: 1,
  hidden: 64,
  mlp: 128,
  heads: 4,
  headDim: 64,
  layers: 6,
  qkvBias: false,
  activation: "relu",
  epsilon: 1e-5,
  head: { kind: "linear", classes: 10, kernel: "zeros", bias: 0 }
})

/** Its tensors by our paths. */
export const names: NameTable = vitPytorch(config)
