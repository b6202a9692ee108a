/** Collectives on native ranks mean what they mean in lockstep: any kind, storage type, mesh and memory order, in scans, joined, started ahead. */
import * as Axis from "@tessera/core/Axis"
import type * as DType from "@tessera/core/DType"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import * as Mesh from "@tessera/core/Mesh"
import type { AnyTensor, Body, Lockstep, Tensor } from "@tessera/core/Node"
import { input } from "@tessera/core/Node"
import * as C from "@tessera/core/primitives/collective"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import * as Dice from "@tessera/core/testing/Dice"
import * as fc from "fast-check"
import { afterAll, expect, it } from "vitest"
import { disagreement } from "../backend/agreement.ts"
import { onRanks } from "./onRanks.ts"

const simulated = onRanks("simulated")
const local = onRanks("local", { memory: "shared" })
/** What is sent stands where other processes could not read it. */
const localElsewhere = onRanks("local")
afterAll(() => Promise.all([simulated, local, localElsewhere].map((r) => r.close())))

type F = Tensor<string>

interface Case {
  readonly mesh: Mesh.Mesh
  readonly body: Body
  readonly inputs: ReadonlyArray<Lockstep>
  readonly prefetch: number
}

const meshes: ReadonlyArray<Mesh.Mesh> = [
  [["data", 2]],
  [["data", 3]],
  [
    ["data", 2],
    ["tensor", 2]
  ],
  [
    ["tensor", 3],
    ["data", 2]
  ]
]

/** A collective over one of the mesh axes, on one or several tensors of the pool. */
const collective = (
  dice: Dice.Dice,
  mesh: Mesh.Mesh,
  pool: ReadonlyArray<F>,
  most: number
): ReadonlyArray<AnyTensor> => {
  const [meshAxis, count] = dice.pick(mesh)
  const first = dice.pick(pool)
  const role = dice.pick(["compute", "gathered", "gradient"] as const)
  const axisOf = (x: F, fits: (size: number) => boolean) => x.type.axes.find((a) => fits(a.size))?.name
  const together = dice.shuffle(pool.filter((x) => x.type.dtype === first.type.dtype)).slice(0, dice.int(1, 3))
  const small = together.filter((x) => Axis.count(x.type.axes) * count <= most)
  const cuttable = together.filter((x) => axisOf(x, (n) => n > 0 && n % count === 0) !== undefined)
  switch (dice.int(0, 6)) {
    case 0:
      return C.together(C.allReduceP, together, { meshAxis, count, by: dice.pick(["sum", "max"] as const) }, role)
    case 1: {
      const axes = small.map((x) => dice.pick(x.type.axes).name)
      return small.length === 0 ? [] : C.together(C.allGatherP, small, { meshAxis, count, axes }, role)
    }
    case 2: {
      const axes = cuttable.map((x) => axisOf(x, (n) => n > 0 && n % count === 0)!)
      return cuttable.length === 0 ? [] : C.together(C.reduceScatterP, cuttable, { meshAxis, count, axes }, role)
    }
    case 3: {
      const x = cuttable.find((y) => y.type.axes.length > 1)
      if (x === undefined) return []
      const to = axisOf(x, (n) => n > 0 && n % count === 0)!
      const from = x.type.axes.find((a) => a.name !== to)!.name
      return C.together(C.allToAllP, [x], { meshAxis, count, from, to }, role)
    }
    case 4:
      return C.together(C.permuteP, together, { meshAxis, count, shift: dice.int(-2, 2) }, role)
    case 5: {
      const axis = cuttable[0] && axisOf(cuttable[0], (n) => n > 0 && n % count === 0)
      return axis === undefined ? [] : C.together(C.shardP, [cuttable[0]!], { meshAxis, count, axis }, role)
    }
    default:
      return C.together(C.keepFirstP, [first], { meshAxis, count }, role)
  }
}

/** Views and kernels around the collectives, so that operands stand in every memory order. */
const other = (dice: Dice.Dice, pool: ReadonlyArray<F>): F => {
  const x = dice.pick(pool)
  const [a] = x.type.axes
  switch (dice.int(0, 3)) {
    case 0:
      return T.tanh(x)
    case 1:
      return a === undefined || a.size < 2
        ? T.abs(x)
        : (T.slice(x, a.name, { to: a.name, start: 1, size: a.size - 1 }) as unknown as F)
    case 2: {
      const b = x.type.axes.at(-1)
      if (a === undefined || b === undefined || a === b || a.size !== b.size) return T.neg(x)
      const swap = T.rename as unknown as (y: F, from: string, to: string) => F
      return swap(swap(swap(x, a.name, "z"), b.name, a.name), "z", b.name)
    }
    default:
      return T.broadcast(x, [...x.type.axes, ...Axis.list({ [`b${x.type.axes.length}`]: 2 })]) as unknown as F
  }
}

const grow = (dice: Dice.Dice, mesh: Mesh.Mesh, start: ReadonlyArray<F>, count: number): ReadonlyArray<F> => {
  const pool = [...start]
  for (let i = 0; i < count; i++) {
    const found = dice.chance(0.6) ? collective(dice, mesh, pool, 400) : [other(dice, pool)]
    pool.push(...(found.filter((x) => Axis.count(x.type.axes) <= 400) as ReadonlyArray<F>))
  }
  return pool
}

/** Collectives in every repetition. */
const scanned = (dice: Dice.Dice, mesh: Mesh.Mesh, pool: ReadonlyArray<F>, size: number): ReadonlyArray<AnyTensor> => {
  const base = dice.pick(pool)
  const each = T.broadcast(base, [Axis.make("n", size), ...base.type.axes]) as unknown as F
  const out = T.scan("n", { carried: [], each: [T.sin(each)], fixed: [dice.pick(pool)] }, (inside) => {
    const all = grow(dice, mesh, [...inside.each, ...inside.fixed] as ReadonlyArray<F>, dice.int(1, 4))
    return { carried: [], stacked: all.slice(-2), summed: all.slice(-1) }
  })
  return [...out.stacked, ...out.summed]
}

const make = (seed: number): Case => {
  const dice = Dice.make(seed)
  const mesh = dice.pick(meshes)
  const dtypes: ReadonlyArray<DType.DType> = dice.chance(0.3) ? ["f32", "bf16"] : ["f32"]
  const sizes = [1, 2, 3, 4, 6, 12]
  const given = Array.from({ length: dice.int(1, 3) }, () => {
    const axes = ["x", "y", "w"].slice(0, dice.int(1, 3)).map((name) => Axis.make(name, dice.pick(sizes)))
    return input({ axes, dtype: dice.pick(dtypes) })
  })
  const pool = grow(dice, mesh, given as unknown as ReadonlyArray<F>, dice.int(1, 6))
  const repeats = dice.int(0, 3)
  const layers = dice.chance(0.4) ? scanned(dice, mesh, pool, repeats) : []
  const outputs = [...pool.slice(-4), ...layers].filter((x, i, all) => all.indexOf(x) === i)
  const body = Program.body(given, outputs)
  const inputs = body.inputs.map(({ type }): Lockstep =>
    Array.from({ length: Mesh.rankCount(mesh) }, () =>
      Host.make(
        type.axes,
        type.dtype,
        Array.from({ length: Axis.count(type.axes) }, () => Math.round((dice.next() * 4 - 2) * 64) / 64)
      )
    )
  )
  return { mesh, body, inputs, prefetch: dice.int(0, 2) }
}

it.each([
  ["in lockstep", simulated, 300],
  ["that read each other's memory", local, 150],
  ["that read copies", localElsewhere, 50]
] as const)("ranks %s equal the evaluator's", async (_what, ranks, numRuns) => {
  await fc.assert(
    fc.asyncProperty(fc.nat(1_000_000), async (seed) => {
      const { body, inputs, mesh, prefetch } = make(seed)
      const expected = Evaluate.lockstep(body, inputs, mesh)
      const found = await ranks.run(body, inputs, mesh, { prefetch })
      for (const [i, x] of expected.entries())
        for (const [rank, y] of x.entries()) {
          const problem = disagreement(y, found[i]![rank]!)
          if (problem !== null) throw new Error(`rank ${rank}, output ${i}: ${problem}\n${Program.print(body)}`)
        }
    }),
    // One of them reads an operand again while it is being summed over the ranks.
    { numRuns, examples: [[942_393], [32_863]] }
  )
})

it("refuses a program for other ranks", async () => {
  const x = input({ axes: Axis.list({ x: 2 }), dtype: "f32" })
  const body = Program.body(
    [x],
    C.together(C.allReduceP, [x], { meshAxis: "data", count: 4, by: "sum" as const }, "compute")
  )
  const two: Lockstep = [Host.make(x.type.axes, "f32", [1, 2]), Host.make(x.type.axes, "f32", [1, 2])]
  await expect(simulated.run(body, [two], [["data", 2]])).rejects.toThrow(
    /for 4 ranks along "data"; the ranks are data=2/
  )
})
