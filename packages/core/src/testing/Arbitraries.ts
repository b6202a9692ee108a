/** Generators of what laws choose: sizes, meshes, strategies, policies. They shrink towards one device and the plainest of everything. */
import * as fc from "fast-check"
import type * as Mesh from "../Mesh.ts"
import * as Meshes from "../Mesh.ts"
import type * as Recompute from "../Recompute.ts"
import type { Choices } from "../Strategy.ts"
import type { Sizes, Subject } from "./Subject.ts"

/** Sizes of a subject: each from its own list, the first one being the plainest. */
export const sizes = (subject: Subject): fc.Arbitrary<Sizes> =>
  fc.record(
    Object.fromEntries(Object.entries(subject.sizes).map(([name, values]) => [name, fc.constantFrom(...values)]))
  )

const axisNames = ["stage", "data", "context", "tensor"] as const
export type MeshAxis = (typeof axisNames)[number]

/** Meshes of the given axes, outermost first, of at most `most` ranks; an axis of one rank is left out. */
export const mesh = (most = 16, axes: ReadonlyArray<MeshAxis> = axisNames): fc.Arbitrary<Mesh.Mesh> =>
  fc
    .tuple(...axes.map(() => fc.constantFrom(1, 2, 1, 4)))
    .map((counts) => axes.flatMap((name, i) => (counts[i]! > 1 ? [[name, counts[i]!] as const] : [])))
    .filter((m) => Meshes.rankCount(m) <= most)

/** Recomputation policies, all layers kept first. */
export const recompute: fc.Arbitrary<Recompute.Policy> = fc.constantFrom<Array<Recompute.Policy>>(
  { kind: "none" },
  { kind: "full" },
  { kind: "full", method: "uniform", layers: 2 },
  { kind: "full", method: "uniform", layers: 3 },
  { kind: "full", method: "block", layers: 1 },
  { kind: "selective" }
)

/** Numbers of microbatches. */
export const microbatches: fc.Arbitrary<number> = fc.constantFrom(1, 2, 4)

/** Any combination of what `Strategy.make` takes, legal or not. */
export const choices = (most = 16, axes?: ReadonlyArray<MeshAxis>): fc.Arbitrary<Choices> =>
  fc
    .record({
      mesh: mesh(most, axes),
      zero: fc.constantFrom<Array<0 | 1 | 2 | 3>>(0, 1, 2, 3),
      flat: fc.constantFrom(false, false, true),
      unit: fc.constantFrom<Array<"block" | "model">>("block", "model"),
      reshard: fc.boolean(),
      sequence: fc.boolean(),
      context: fc.constantFrom<Array<"gather" | "ring">>("gather", "ring"),
      microbatches,
      recompute,
      schedule: fc.constantFrom<Array<"1f1b" | "gpipe" | "interleaved">>("1f1b", "gpipe", "interleaved"),
      virtual: fc.constantFrom(1, 2)
    })
    .map(({ flat, reshard, schedule, unit, virtual, ...rest }) => ({
      ...rest,
      // Flat parameters and tensor parallelism exclude each other.
      ...(flat && Meshes.has(rest.mesh, "data") && !Meshes.has(rest.mesh, "tensor")
        ? { fsdp: { unit, reshardAfterForward: reshard } }
        : {}),
      schedule,
      virtualStages: schedule === "interleaved" ? virtual : 1
    }))
