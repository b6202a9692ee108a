/** Sources of images, opened by their short form. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { BadRequest, type DataError, EmptySource, fail } from "./Errors.ts"
import * as Idx from "./Idx.ts"
import * as ImageFolder from "./ImageFolder.ts"
import type { ImageSample, Source } from "./Samples.ts"
import * as Shards from "./Shards.ts"
import * as WebDataset from "./WebDataset.ts"

export * from "./Samples.ts"

export interface OpenOptions {
  /** which files of an idx folder; default "train" */
  readonly split?: "train" | "test"
  /** where gzipped shards are unpacked; default a folder below the system's temporary folder */
  readonly cacheFolder?: string
  /** samples of a shard without an image: an error (default), or left out */
  readonly missing?: "error" | "skip"
}

/**
 * Opens a source of images by its short form:
 *
 * - `idx:FOLDER`: MNIST-like idx files, plain or gzipped
 * - `folder:FOLDER`: one subfolder per class
 * - `shards:PATTERN`, or a bare pattern ending in .tar, .tgz or .tar.gz: WebDataset shards, with braces and `::`
 *
 * Files stay open until the scope closes. Fails with the reason of the reader, or `BadRequest` for another form.
 */
export const open = (
  spec: string,
  options: OpenOptions = {}
): Effect.Effect<Source<ImageSample>, DataError, Scope.Scope> => {
  const colon = spec.indexOf(":")
  const kind = colon > 0 && spec[colon + 1] !== ":" ? spec.slice(0, colon) : ""
  const rest = spec.slice(colon + 1)
  const opened: Effect.Effect<Source<ImageSample>, DataError, Scope.Scope> = kind === "idx"
    ? Idx.open(rest, options.split ?? "train")
    : kind === "folder"
      ? ImageFolder.open(rest)
      : kind === "shards"
        ? WebDataset.openImages(Shards.expand(rest), options)
        : /\.(tar|tgz|tar\.gz)$/.test(spec)
          ? WebDataset.openImages(Shards.expand(spec), options)
          : fail(
              new BadRequest({
                what: "the data source",
                found: JSON.stringify(spec),
                expected: `"idx:FOLDER", "folder:FOLDER", "shards:PATTERN" or a pattern ending in .tar or .tar.gz, such as "shards/train-{000000..000146}.tar"`
              })
            )
  return Effect.flatMap(opened, (source) =>
    source.count === 0
      ? fail(new EmptySource({ source: source.name, expected: "at least one sample" }))
      : Effect.succeed(source)
  )
}
