/** The forward program of a step as its strategy stores parameters. */
import type { Body } from "../Node.ts"
import * as Flatten from "../Flatten.ts"
import type * as Module from "../Module.ts"
import type * as Optimizer from "../Optimizer.ts"
import * as Padding from "../Padding.ts"
import * as Precision from "../Precision.ts"
import * as Strategy from "../Strategy.ts"
import type { BatchTypes, Config } from "./Config.ts"
import { lossProgram } from "./Loss.ts"
import * as Storages from "./Storage.ts"

export interface Prepared {
  /** stored parameters, batch, seed, lossScale to sums. */
  readonly body: Body
  readonly whole: boolean
  readonly metrics: ReadonlyArray<string>
  readonly params: Module.ParamTree
  readonly optimizer: Optimizer.Optimizer
  readonly storage: Storages.Storage
}

/** Traced, typed, padded, flattened. Throws `ProgramError`, `RecipeError` and `PartitionError`. */
export const prepare = <P extends Module.ParamTree, B extends BatchTypes>(config: Config<P, B>): Prepared => {
  const { precision = Precision.f32, strategy = Strategy.single } = config
  const optimizer = Precision.optimizerIn(config.optimizer, precision)
  const loss = lossProgram(config)
  const padded = Padding.parameters(config.params, strategy)
  if (strategy.fsdp === null) {
    const storage = Storages.make(
      { declared: config.params, padded, stored: padded },
      { declared: optimizer, stored: optimizer },
      null
    )
    return { ...loss, params: padded, optimizer, storage }
  }
  const flat = Flatten.apply(loss.body, padded, optimizer, strategy, strategy.fsdp)
  const storage = Storages.make(
    { declared: config.params, padded, stored: flat.params },
    { declared: optimizer, stored: flat.optimizer },
    flat.units
  )
  return { ...loss, body: flat.body, params: flat.params, optimizer: flat.optimizer, storage }
}
