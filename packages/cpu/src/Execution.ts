/** A compiled program: stretches of kernels, with what ranks do together between them. */
import * as Axis from "@tessera/core/Axis"
import * as DType from "@tessera/core/DType"
import { type CollectiveError, DeviceError } from "@tessera/core/Errors"
import * as Plan from "@tessera/core/Plan"
import * as Program from "@tessera/core/Program"
import type { Buffer, EquationProfile, Executable } from "@tessera/core/services/Backend"
import type { CollectivesService, Operation, Span } from "@tessera/core/services/Collectives"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { locate, outline, type Stretch, stretches } from "./CpuPlan.ts"
import { type Block, type CpuBuffer, execute, type Machine, owned, sameMemory, spanOf, wrong } from "./Machine.ts"
import type { Instruction } from "./Words.ts"

export interface Parts {
  readonly machine: Machine
  readonly collectives: CollectivesService
  readonly program: Program.Body
  readonly plan: Plan.Plan<Instruction>
  readonly arena: Block
  /** Null for an output that stands in its donor, or in memory that every run is given. */
  readonly outputs: ReadonlyArray<CpuBuffer | null>
  /** Outputs whose memory every run is given. */
  readonly bound: ReadonlyArray<number>
}

/** Everything that a run works on: the arena, the inputs, the outputs. */
type Blocks = ReadonlyArray<Block | null>

/** The memory of a run, or what is wrong with what was given. */
const blocksOf = (parts: Parts, inputs: ReadonlyArray<Buffer>, given: ReadonlyArray<Buffer>): Blocks | DeviceError => {
  const { bound, outputs, plan, program } = parts
  const count = program.inputs.length
  if (inputs.length !== count) return wrong(`the program takes ${count} inputs, found ${inputs.length}`)
  if (given.length !== bound.length) return wrong(`${bound.length} outputs need memory, found that of ${given.length}`)
  const blocks: Array<Block | null> = [parts.arena]
  const problem = (buffer: Buffer, type: Buffer["type"], what: string): DeviceError | null => {
    const found = owned(buffer)
    if (found instanceof DeviceError) return found
    if (found.type.dtype !== type.dtype || !sameMemory(found.type.axes, type.axes))
      return wrong(
        `${what} is ${found.type.dtype}${Axis.print(found.type.axes)}, expected ${type.dtype}${Axis.print(type.axes)}`
      )
    blocks.push(found)
    return null
  }
  for (const [i, buffer] of inputs.entries()) {
    const bad = problem(buffer, program.inputs[i]!.type, `input ${i}`)
    if (bad !== null) return bad
  }
  for (const [i, output] of outputs.entries()) {
    const at = bound.indexOf(i)
    if (at < 0) blocks.push(output)
    else {
      const bad = problem(given[at]!, program.outputs[i]!.type, `the memory of output ${i}`)
      if (bad !== null) return bad
    }
  }
  // What the run writes must be nothing else that it reads: a later kernel would read the new value.
  const readers = new Map<Block, number>()
  for (let b = 1; b <= count; b++) readers.set(blocks[b]!, (readers.get(blocks[b]!) ?? 0) + 1)
  for (const [i, { donated: from }] of plan.outputs.entries()) {
    const own = blocks[1 + count + i]
    if (own !== null && own !== undefined && readers.has(own))
      return wrong(`the memory of output ${i} was given as an input of the same program`)
    if (from !== null && readers.get(blocks[1 + from]!)! > 1)
      return wrong(`input ${from}, which the program overwrites, was given as another input, too`)
  }
  return blocks
}

const addressesOf = (blocks: Blocks): BigInt64Array | DeviceError => {
  const all = new BigInt64Array(blocks.length)
  for (const [i, block] of blocks.entries()) {
    if (block === null) continue
    if (block.address === 0n) return wrong(`the scope of ${i === 0 ? "the program" : "a buffer"} has closed`)
    all[i] = block.address
  }
  return all
}

/** The contiguous memory of a view. */
const spanOfView = ({ machine, plan, program }: Parts, view: Plan.View, blocks: Blocks): Span => {
  const { binding, offset } = locate(plan, program.inputs.length, view.buffer)
  const size = DType.bytesOf(view.dtype)
  return spanOf(machine.library, blocks[binding]!, offset + view.offset * size, Plan.elements(view) * size)
}

const operationOf = ({ equation, send }: Plan.Exchange): Operation => ({
  kind: equation.primitive.name as Operation["kind"],
  meshAxis: equation.params.meshAxis,
  by: equation.params.by ?? "sum",
  shift: equation.params.shift ?? 0,
  operands: send.map((v) => ({ dtype: v.dtype, count: Plan.elements(v) })),
  line: Program.line(equation)
})

type Flights = Map<number, Fiber.Fiber<void, CollectiveError>>

/** One stretch after another. A collective goes on by itself until it is awaited. */
const perform = (
  parts: Parts,
  all: ReadonlyArray<Stretch>,
  blocks: Blocks,
  profile: Float64Array | null
): Effect.Effect<void, DeviceError | CollectiveError> => {
  const { collectives, machine, plan } = parts
  const native = (words: BigInt64Array) =>
    execute(machine, { bind: () => addressesOf(blocks), words, profile, equations: plan.equations })
  if (all.every((s) => s.kind === "native"))
    return Effect.forEach(all, (s) => native((s as Extract<Stretch, { readonly kind: "native" }>).words), {
      discard: true
    })
  const step = (s: Stretch, flights: Flights): Effect.Effect<void, DeviceError | CollectiveError, Scope.Scope> => {
    if (s.kind === "native") return native(s.words)
    const { exchange } = s
    if (s.kind === "wait") return Fiber.join(flights.get(exchange.id)!)
    const send = exchange.send.map((v) => spanOfView(parts, v, blocks))
    const receive = exchange.receive.map((v) => spanOfView(parts, v, blocks))
    return Effect.map(
      Effect.forkScoped(collectives.run(operationOf(exchange), send, receive), { startImmediately: true }),
      (fiber) => {
        flights.set(exchange.id, fiber)
      }
    )
  }
  return Effect.scoped(
    Effect.suspend(() => {
      const flights: Flights = new Map()
      return Effect.forEach(all, (s) => step(s, flights), { discard: true })
    })
  )
}

export const make = (parts: Parts): Executable => {
  const { outputs, plan, program } = parts
  const all = stretches(plan, program.inputs.length)
  const run = (inputs: ReadonlyArray<Buffer>, bound: ReadonlyArray<Buffer>, profile: Float64Array | null) =>
    Effect.suspend((): Effect.Effect<ReadonlyArray<Buffer>, DeviceError | CollectiveError> => {
      const blocks = blocksOf(parts, inputs, bound)
      if (blocks instanceof DeviceError) return Effect.fail(blocks)
      return Effect.as(
        perform(parts, all, blocks, profile),
        outputs.map((output, i) => output ?? bound[parts.bound.indexOf(i)] ?? inputs[plan.outputs[i]!.donated!]!)
      )
    })
  return {
    run: (inputs, bound = []) => run(inputs, bound, null),
    profile: (inputs, bound = []) => {
      const times = new Float64Array(plan.equations.length + 1)
      return Effect.map(run(inputs, bound, times), () =>
        plan.equations
          .map((equation, i): EquationProfile => ({ equation, nanoseconds: times[i]! }))
          .filter((p) => p.nanoseconds > 0)
      )
    },
    cost: Program.cost(program),
    ...outline(program, plan, { bound: parts.bound })
  }
}
