/** The fused optimizer update. */
import type { Equation } from "@tessera/core/Node"
import type * as Plan from "@tessera/core/Plan"
import type { AdamwParams } from "@tessera/core/primitives/update"
import { opcodes } from "../opcodes.ts"
import { double, operand } from "../Words.ts"
import * as Nest from "./nest.ts"

export const emitAdamw = (
  e: Equation,
  inputs: ReadonlyArray<Plan.View>,
  outputs: ReadonlyArray<Plan.View>,
  emission: Nest.Emission
): void => {
  const p = e.params as AdamwParams
  const order = Nest.memoryOrder(outputs[0]!)
  const [parameter, gradient, m, v] = inputs.slice(0, 4).map((x) => Nest.contiguous(x, order, emission)) as [
    Plan.View,
    Plan.View,
    Plan.View,
    Plan.View
  ]
  const scalars = Nest.contiguous(inputs[4]!, [{ name: "scalar", size: 4 }], emission)
  const outs = outputs.map((o) => Nest.denseOutput(o, order, emission))
  emission.push(
    {
      opcode: opcodes.ADAMW,
      words: [
        Nest.sizeOf(order),
        ...[parameter, gradient, m, v].map(operand),
        ...outs.map((o) => operand(o.view)),
        operand(scalars),
        double(p.b1),
        double(p.b2),
        double(p.epsilon),
        double(p.decay)
      ]
    },
    [parameter, gradient, m, v, scalars],
    outs.map((o) => o.view),
    true
  )
  for (const o of outs) o.finish()
}
