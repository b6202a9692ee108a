/** The central interface: a finite list of samples with random access and an identity. */
import * as Effect from "effect/Effect"
import { createHash } from "node:crypto"
import type { DataError } from "./Errors.ts"
import type { EncodedImage, RawImage } from "./Image.ts"
import * as Order from "./Order.ts"

/** A finite, randomly accessible list of samples. */
export interface Source<S> {
  /** what to call it in messages */
  readonly name: string
  /** changes when the list of samples changes; independent of where the files lie */
  readonly digest: string
  /** exact, and known before the first epoch */
  readonly count: number
  /** sample `index` in `[0, count)` */
  readonly get: (index: number) => Effect.Effect<S, DataError>
  /** class names by label, or null when unknown */
  readonly classes: ReadonlyArray<string> | null
}

/** One image with what is known about it. */
export interface ImageSample {
  /** unique within its file */
  readonly key: string
  /** the file the sample was read from */
  readonly origin: string
  readonly image: EncodedImage | RawImage
  readonly label: number | null
  readonly text?: string
  readonly json?: unknown
}

/** Part `index` of `parts`: samples `floor(count * index / parts)` up to the next part's start. Parts cover everything once. */
export const part = <S>(source: Source<S>, index: number, parts: number): Source<S> => {
  const { start, end } = Order.part(source.count, index, parts)
  return {
    ...source,
    name: `${source.name} (part ${index} of ${parts})`,
    digest: digestOf([source.digest, "part", String(start), String(end)]),
    count: end - start,
    get: (sample) => source.get(start + sample)
  }
}

/** The samples at `indices`, in that order. */
export const select = <S>(source: Source<S>, indices: ReadonlyArray<number>): Source<S> => ({
  ...source,
  name: `${source.name} (${indices.length} selected)`,
  digest: digestOf([source.digest, "select", ...indices.map(String)]),
  count: indices.length,
  get: (sample) => source.get(indices[sample]!)
})

/** Every sample changed by `f`; the identity stays, since the list does. */
export const map = <A, B>(source: Source<A>, f: (sample: A) => B): Source<B> => ({
  ...source,
  get: (index) => Effect.map(source.get(index), f)
})

/** A source over samples that are already in memory. */
export const fromArray = <S>(
  name: string,
  samples: ReadonlyArray<S>,
  options: {
    readonly digest: string
    readonly classes?: ReadonlyArray<string>
  }
): Source<S> => ({
  name,
  digest: options.digest,
  count: samples.length,
  classes: options.classes ?? null,
  get: (index) => Effect.succeed(samples[index]!)
})

/** A stable digest of a list of texts: the first 128 bits of SHA-256, in hexadecimal. */
export const digestOf = (parts: Iterable<string | Uint8Array>): string => {
  const hash = createHash("sha256")
  for (const text of parts) hash.update(text).update("\0")
  return hash.digest("hex").slice(0, 32)
}
