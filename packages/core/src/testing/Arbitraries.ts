/** Generators of what laws choose: sizes, meshes, strategies, policies. They shrink towards one device and the plainest of everything. */
import * as fc from "fast-check"
import * as Axis from "../Axis.ts"
import * as DType from "../DType.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import type { TensorType } from "../Node.ts"
import type * as Mesh from "../Mesh.ts"
import * as Meshes from "../Mesh.ts"
import type * as Recompute from "../Recompute.ts"
import type { Choices } from "../Strategy.ts"
import type { Sizes, Subject } from "./Subject.ts"

/** One of several values; shrinks step by step towards the first, where `fc.constantFrom` would only try the first. */
export const among = <A>(...values: ReadonlyArray<A>): fc.Arbitrary<A> =>
  fc.nat(Math.max(0, values.length - 1)).map((i) => values[i]!)

/** Storage types. */
export const dtype: fc.Arbitrary<DType.DType> = among(...DType.all)

/** Storage types of floats. */
export const float: fc.Arbitrary<"f32" | "bf16" | "f16"> = among("f32", "bf16", "f16")

/** Some of the named axes, each of a size up to `most`, in any memory order. */
export const shape = (names: ReadonlyArray<string>, most = 5): fc.Arbitrary<Axis.Axes> =>
  fc
    .shuffledSubarray([...names])
    .chain((chosen) =>
      fc
        .tuple(...chosen.map(() => fc.integer({ min: 1, max: most })))
        .map((sizes) => chosen.map((name, i) => Axis.make(name, sizes[i]!)))
    )

/** Elements that a storage type can hold: floats within 3 of 0, all whole numbers. */
export const array = ({ axes, dtype: type }: TensorType): fc.Arbitrary<HostArray> => {
  const limits: Readonly<Record<string, readonly [number, number]>> = {
    i32: [-(2 ** 31), 2 ** 31 - 1],
    u32: [0, 2 ** 32 - 1],
    u8: [0, 255],
    bool: [0, 1]
  }
  const range = limits[type]
  const element =
    range === undefined
      ? fc.double({ min: -3, max: 3, noNaN: true }).map(Math.fround)
      : fc.integer({ min: range[0], max: range[1] })
  const count = Axis.count(axes)
  return fc.array(element, { minLength: count, maxLength: count }).map((data) => Host.make(axes, type, data))
}

/** Sizes of a subject: each from its own list, the first one being the plainest. */
export const sizes = (subject: Subject): fc.Arbitrary<Sizes> =>
  fc.record(Object.fromEntries(Object.entries(subject.sizes).map(([name, values]) => [name, among(...values)])))

const axisNames = ["stage", "data", "context", "tensor"] as const
export type MeshAxis = (typeof axisNames)[number]

/** Meshes of the given axes, outermost first, of at most `most` ranks; an axis of one rank is left out. They shrink towards two ranks of `data`. */
export const mesh = (most = 16, axes: ReadonlyArray<MeshAxis> = axisNames): fc.Arbitrary<Mesh.Mesh> => {
  // Shrinking takes fields in their order: what is plainest comes last.
  const order = [...axes.filter((name) => name !== "data"), ...axes.filter((name) => name === "data")]
  return fc
    .record(Object.fromEntries(order.map((name) => [name, among(1, 1, 2, 4)])))
    .map((counts) => axes.flatMap((name) => (counts[name]! > 1 ? [[name, counts[name]!] as const] : [])))
    .filter((m) => Meshes.rankCount(m) <= most)
}

/** Recomputation policies, all layers kept first. */
export const recompute: fc.Arbitrary<Recompute.Policy> = among<Recompute.Policy>(
  { kind: "none" },
  { kind: "full" },
  { kind: "full", method: "uniform", layers: 2 },
  { kind: "full", method: "uniform", layers: 3 },
  { kind: "full", method: "block", layers: 1 },
  { kind: "selective" }
)

/** Seeds of values. They do not shrink: one is as plain as the other. */
export const seed: fc.Arbitrary<number> = fc.noShrink(fc.integer({ min: 1, max: 1000 }))

/** Numbers of microbatches. */
export const microbatches: fc.Arbitrary<number> = among(1, 2, 4)

/** Every number of microbatches that divides a batch, besides 1; 1 where there is no other. */
export const microbatchesOf = (batch: number): fc.Arbitrary<number> => {
  const divisors = Array.from({ length: batch }, (_, i) => i + 1).filter((k) => k > 1 && batch % k === 0)
  return among(...(divisors.length === 0 ? [1] : divisors))
}

/** Any combination of what `Strategy.make` takes, legal or not. */
export const choices = (most = 16, axes?: ReadonlyArray<MeshAxis>): fc.Arbitrary<Choices> =>
  fc
    .record({
      mesh: mesh(most, axes),
      zero: among<0 | 1 | 2 | 3>(0, 1, 2, 3),
      flat: among(false, false, true),
      unit: among<"block" | "model">("block", "model"),
      reshard: fc.boolean(),
      sequence: fc.boolean(),
      context: among<"gather" | "ring">("gather", "ring"),
      microbatches,
      recompute,
      schedule: among<"1f1b" | "gpipe" | "interleaved">("1f1b", "gpipe", "interleaved"),
      virtual: among(1, 2)
    })
    .map(({ flat, reshard, schedule, unit, virtual, ...rest }) => ({
      ...rest,
      // Flat parameters and tensor parallelism exclude each other.
      ...(flat && Meshes.has(rest.mesh, "data") && !Meshes.has(rest.mesh, "tensor")
        ? { fsdp: { unit, reshardAfterForward: reshard && unit === "block" } }
        : {}),
      schedule,
      virtualStages: schedule === "interleaved" ? virtual : 1
    }))
