/** Legal uses of every primitive. A primitive without a generator is a type error here, and the laws then run by themselves. */
import type { PrimitiveName } from "@tessera/core/primitives/all"
import type * as fc from "fast-check"
import { axes } from "./axes.ts"
import { composites } from "./composites.ts"
import { elementwise } from "./elementwise.ts"
import { regions } from "./regions.ts"
import type { Options, Sample } from "./Sample.ts"

export type Samples = { readonly [N in PrimitiveName]: fc.Arbitrary<Sample> }

type Generators = { readonly [N in PrimitiveName]: (options: Options) => fc.Arbitrary<Sample> }
const generators: Generators = { ...elementwise, ...axes, ...composites, ...regions }

const samplesFor = (options: Options): Samples =>
  Object.fromEntries(Object.entries(generators).map(([name, make]) => [name, make(options)])) as unknown as Samples

/** All storage types, sizes with 0, 1 and odd ones, NaN and infinities where they mean something. */
export const samples: Samples = samplesFor({ smooth: false })

/** Small, f32, finite, away from kinks and ties. */
export const smoothSamples: Samples = samplesFor({ smooth: true })

export const names = Object.keys(generators) as ReadonlyArray<PrimitiveName>
