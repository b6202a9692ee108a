/** Whether everything that is split divides, asked before anything is built so that errors can name the tensor. */
import * as Accumulate from "../Accumulate.ts"
import * as Layout from "../Layout.ts"
import * as Module from "../Module.ts"
import type { TensorType } from "../Node.ts"
import * as Padding from "../Padding.ts"
import * as Strategy from "../Strategy.ts"
import * as Tree from "../Tree.ts"
import type { BatchTypes, Config } from "./Config.ts"
import { isType } from "./Config.ts"

/** Throws `PartitionError` with the path of the first parameter or batch leaf that a strategy cannot split evenly. */
export const divisible = <P extends Module.ParamTree, B extends BatchTypes>(config: Config<P, B>): void => {
  const { strategy = Strategy.single } = config
  const count = strategy.microbatches
  const [types, shape] = Tree.flatten<TensorType, B>(config.batch, isType)
  const part = count === 1 ? "" : ` (one of ${count} microbatches)`
  Tree.paths(shape).forEach((path, i) => {
    const type = Accumulate.resized(types[i]!, (n) => n / count)
    Layout.named(type, "compute", strategy, { padded: true, tensor: `batch.${path}${part}` })
  })
  for (const { param, path } of Module.leaves(Padding.parameters(config.params, strategy)))
    for (const role of ["compute", "parameter", "gradient", "optimizer"] as const) {
      // Layers are cut into stages where the pipeline knows how many there are in all.
      const type = { axes: param.axes.filter((a) => a.name !== "layers"), dtype: "f32" } as const
      Layout.named(type, role, strategy, { padded: true, tensor: `parameter ${path}` })
    }
}
