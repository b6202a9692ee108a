/**
 * The WebDataset index of NVIDIA DALI, versions 1.1 (read) and 1.2 (read and written).
 *
 * @source NVIDIA/DALI tools/wds2idx.py and dali/operators/reader/loader/webdataset_loader.cc
 */
import * as Effect from "effect/Effect"
import { BadRequest, type DataError, fail, IndexInvalid } from "./Errors.ts"
import type { Member } from "./Tar.ts"

/** One file of a sample. `name` is null in a version 1.1 index, which does not hold it. */
export interface Component {
  readonly extension: string
  readonly offset: number
  readonly size: number
  readonly name: string | null
}

/** The components of one sample, in archive order. */
export type SampleEntry = ReadonlyArray<Component>

const versions: ReadonlySet<string> = new Set(["v1.1", "v1.2"])

/** Base name up to the first dot after the last slash, and the rest without that dot. */
export const splitName = (name: string): { readonly base: string; readonly extension: string } => {
  const dot = name.indexOf(".", name.lastIndexOf("/") + 1)
  return dot < 0 ? { base: name, extension: "" } : { base: name.slice(0, dot), extension: name.slice(dot + 1) }
}

/**
 * Groups consecutive members of equal base name into samples. Hidden files and files without a base name are left
 * out; a base name that comes back later is a new sample.
 */
export const group = (
  members: Iterable<Member>
): ReadonlyArray<{ readonly base: string; readonly components: SampleEntry }> => {
  const samples: Array<{ readonly base: string; readonly components: Array<Component> }> = []
  for (const member of members) {
    const { base, extension } = splitName(member.name)
    if (base === "" || base.endsWith("/")) continue
    const component = { extension, offset: member.offset, size: member.size, name: member.name }
    const last = samples.at(-1)
    if (last !== undefined && last.base === base) last.components.push(component)
    else samples.push({ base, components: [component] })
  }
  return samples
}

/**
 * The index of an archive, version 1.2, byte for byte as wds2idx writes it. Fails with `IndexInvalid` when the archive
 * holds no sample, or a name or extension that this format cannot hold (with a space, or empty).
 */
export const write = (file: string, members: Iterable<Member>): Effect.Effect<string, DataError> => {
  const samples = group(members)
  const invalid = (details: string) => fail(new IndexInvalid({ file, line: null, details }))
  if (samples.length === 0) return invalid("Webdataset Tar File empty")
  for (const sample of samples) {
    for (const { extension, name } of sample.components) {
      if (/\s/.test(name ?? ""))
        return invalid(
          `the name ${JSON.stringify(name)} contains a space, which separates fields in an index; rename it`
        )
      if (extension === "")
        return invalid(
          `the name ${JSON.stringify(name)} has no extension, and an index needs one; rename it or leave it out`
        )
    }
  }
  const lines = samples.map((sample) =>
    sample.components.map((one) => `${one.extension} ${one.offset} ${one.size} ${one.name}`).join(" ")
  )
  return Effect.succeed([`v1.2 ${samples.length}`, ...lines, ""].join("\n"))
}

/** Reads the text of an index file. Fails with `IndexInvalid`, worded as DALI words it, with the line. */
export const read = (file: string, content: string): Effect.Effect<ReadonlyArray<SampleEntry>, DataError> => {
  const invalid = (line: number, details: string) => fail(new IndexInvalid({ file, line, details }))
  const lines = content.split("\n")
  const [version, countText] = words(lines[0] ?? "")
  if (version === undefined) return invalid(0, "no version signature found")
  if (!versions.has(version)) return invalid(0, `Unsupported version of the index file (${version}).`)
  const count = wholeNumber(countText)
  if (count === null) return invalid(0, "no sample count found")
  if (count <= 0) return invalid(0, "sample count must be positive")
  const fieldCount = version === "v1.2" ? 4 : 3
  const samples: Array<SampleEntry> = []
  for (let line = 1; line <= count; line++) {
    const fields = words(lines[line] ?? "")
    const components: Array<Component> = []
    for (let at = 0; at < fields.length; at += fieldCount) {
      const offset = wholeNumber(fields[at + 1])
      const size = wholeNumber(fields[at + 2])
      const name = fieldCount === 4 ? fields[at + 3] : null
      if (offset === null || size === null || name === undefined) {
        return invalid(
          line,
          fieldCount === 4
            ? "Could not find all necessary component parameters (offset, size or filename). Every record in the index file should look like: `<ext> <offset> <size> <filename>`."
            : "Could not find all necessary component parameters (offset or size). Every record in the index file should look like: `<ext> <offset> <size>`."
        )
      }
      if (offset % 512 !== 0)
        return invalid(
          line,
          "tar offset is not a multiple of tar block size (512), perhaps the size value is exported before offset?"
        )
      components.push({ extension: fields[at]!, offset, size, name })
    }
    if (components.length === 0) return invalid(line, "no extensions provided for the sample")
    samples.push(components)
  }
  return Effect.succeed(samples)
}

/** Compares an index with the size of its archive. Fails with `IndexInvalid` for a component that starts or ends outside. */
export const checkBounds = (
  file: string,
  samples: ReadonlyArray<SampleEntry>,
  archiveBytes: number
): Effect.Effect<void, DataError> => {
  for (const [at, sample] of samples.entries()) {
    for (const component of sample) {
      if (component.offset + component.size > archiveBytes || component.offset >= archiveBytes) {
        return fail(new IndexInvalid({ file, line: at + 1, details: "offset is outside of the archive file" }))
      }
    }
  }
  return Effect.void
}

/** Pairs archives with index files. An empty list of index files means none; otherwise there must be one each (`BadRequest`). */
export const checkCounts = (
  archives: ReadonlyArray<string>,
  indexes: ReadonlyArray<string>
): Effect.Effect<void, DataError> =>
  indexes.length === 0 || indexes.length === archives.length
    ? Effect.void
    : fail(
        new BadRequest({
          what: "The number of index files",
          found: `${indexes.length} for ${archives.length} archives`,
          expected:
            "none, or one each: The number of index files, if any, must match the number of archives in the dataset"
        })
      )

/** What to do with a sample that lacks a component. `empty` gives no bytes for it. */
export type MissingBehaviour = "empty" | "skip" | "error"

/** Reads a DALI `missing_component_behavior`, in any case; "" means empty. Fails with `BadRequest` for another word. */
export const missingBehaviour = (word: string): Effect.Effect<MissingBehaviour, DataError> => {
  const lower = word.toLowerCase()
  if (lower === "") return Effect.succeed("empty")
  if (lower === "skip" || lower === "error" || lower === "empty") return Effect.succeed(lower)
  return fail(
    new BadRequest({
      what: "missing_component_behavior",
      found: `Invalid value for missing_component_behavior '${word}'`,
      expected: "possible values are: skip, error, empty"
    })
  )
}

/** The default place of an archive's index: the name cut at the first dot after the last slash, with ".idx". */
export const defaultPath = (archive: string): string => `${splitName(archive).base}.idx`

const words = (line: string): ReadonlyArray<string> => line.split(/\s+/).filter((word) => word !== "")
const wholeNumber = (word: string | undefined): number | null =>
  word !== undefined && /^-?\d+$/.test(word) ? Number(word) : null
