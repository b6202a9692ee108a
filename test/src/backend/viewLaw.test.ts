/**
 * Every primitive on operands that are strided windows of other buffers, with results that are windows or in another memory order: kernels see
 * the same inside models, where layers are slices of stacks and states are donated.
 */
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import * as DType from "@tessera/core/DType"
import * as Host from "@tessera/core/HostArray"
import type { AnyTensor, Body } from "@tessera/core/Node"
import { build, input } from "@tessera/core/Node"
import type { PrimitiveName } from "@tessera/core/primitives/all"
import { scanP } from "@tessera/core/primitives/control"
import * as Program from "@tessera/core/Program"
import { Backend } from "@tessera/core/services/Backend"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as fc from "fast-check"
import { afterAll, describe, expect, it } from "vitest"
import * as Dice from "@tessera/core/testing/Dice"
import * as Sample from "../samples/Sample.ts"
import { names, samples } from "../samples/samples.ts"
import { allowed, disagreement, type Exact, isIllConditioned } from "./agreement.ts"

const runtime = ManagedRuntime.make(CpuBackend.layerWith({ threads: 2, memory: "guarded" }))
afterAll(() => runtime.dispose())

/** The axis that windows are cut along. */
const window = Axis.make("window", 2)

interface Windows {
  readonly body: Body
  readonly arrays: ReadonlyArray<Host.HostArray>
  /** Outputs and the memory order they are wanted in. */
  readonly orders: ReadonlyArray<Axis.Axes>
}

/** The sample once for each index of an axis that stands anywhere in its operands. */
const windows = (s: Sample.Sample, seed: number): Windows => {
  const dice = Dice.make(seed)
  const wide = s.types.map((t) => {
    const at = dice.int(0, t.axes.length)
    return { axes: [...t.axes.slice(0, at), window, ...t.axes.slice(at)], dtype: t.dtype }
  })
  const inputs = wide.map((t) => input(t))
  const each = inputs.length
  const params = { axis: window.name, size: window.size, reverse: dice.chance(0.5), body: Sample.bodyOf(s) }
  const outputs =
    each === 0
      ? Sample.bodyOf(s).outputs
      : build(scanP, inputs, { ...params, carried: 0, each, stacked: params.body.outputs.length }, "compute")
  // Some operands of backward kernels are results of the forward: other values would mean nothing.
  const free = !s.primitive.name.endsWith("Backward") && s.primitive.meaning.kind !== "region"
  const arrays = wide.map((t, i) => {
    const x = s.arrays[i]!
    const other = free && DType.kindOf(x.dtype) === "float" ? { ...x, data: x.data.toReversed() } : x
    const stacked = Host.stack([x, other], window, s.types[i]!)
    return Host.reorder(stacked, t.axes)
  })
  return { body: Program.body(inputs, outputs), arrays, orders: outputs.map((o) => dice.shuffle(o.type.axes)) }
}

const onCpu = ({ arrays, body, orders }: Windows) =>
  Effect.gen(function* () {
    const backend = yield* Backend
    // An output that is donated an input stands in that input's memory order.
    const donors: ReadonlyArray<AnyTensor> = body.outputs.map((o, i) =>
      input({ axes: orders[i]!, dtype: o.type.dtype })
    )
    const executable = yield* backend.compile(Program.make([...body.inputs, ...donors], [...body.outputs]), {
      donated: donors.map((_, i) => [body.inputs.length + i, i] as const)
    })
    const buffers = yield* Effect.forEach([...body.inputs, ...donors], (x) => backend.allocate(x.type))
    for (const [i, a] of arrays.entries()) yield* backend.write(buffers[i]!, Host.toBytes(a))
    const outputs = yield* executable.run(buffers)
    return yield* Effect.forEach(outputs, (o) =>
      Effect.map(backend.read(o), (bytes) => Host.fromBytes(o.type.axes, o.type.dtype, bytes))
    )
  }).pipe(Effect.scoped, (e) => runtime.runPromise(e))

const check = async (name: PrimitiveName, runs: number): Promise<string | null> => {
  const details = await fc.check(
    fc.asyncProperty(samples[name], fc.nat(2 ** 31 - 1), async (s, seed) => {
      const w = windows(s, seed)
      const expected = Evaluate.runUnsafe(w.body, w.arrays)
      const found = await onCpu(w)
      expected.forEach((e, i) => {
        const judge = (x: Host.HostArray) => disagreement(e, x, w.arrays, allowed(s, e.dtype))
        const problem = judge(found[i]!)
        const exact: Exact = (nudge) => Evaluate.runUnsafe(w.body, nudge(w.arrays))[i]!
        if (problem !== null && !isIllConditioned(e, found[i]!, exact, judge))
          throw new Error(
            `${name}, output ${i} in order ${Axis.print(w.orders[i]!)}: ${problem}\n${Program.print(w.body)}`
          )
      })
    }),
    { numRuns: runs }
  )
  return details.failed ? String(details.errorInstance) : null
}

describe("kernels on windows of memory", () => {
  for (const name of names) {
    it(name, async () => {
      expect(await check(name, 40)).toBeNull()
    })
  }
})
