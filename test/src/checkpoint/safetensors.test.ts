import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import * as Safetensors from "@tessera/core/Safetensors"
import * as Slice from "@tessera/core/Slice"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import * as fc from "fast-check"
import { existsSync } from "node:fs"
import { resolve } from "node:path"

const shared = process.env["TESSERA_SHARED"] ?? resolve(import.meta.dirname, "../../../../shared/data")

const dtypes = ["F64", "F32", "F16", "BF16", "I64", "I32", "U32", "U8", "BOOL"] as const

const shape = fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 })

const tensors = fc
  .uniqueArray(fc.tuple(fc.string({ minLength: 1, unit: "grapheme" }), fc.constantFrom(...dtypes), shape), {
    maxLength: 6,
    selector: ([name]) => name
  })
  .filter((all) => all.every(([name]) => name !== "__metadata__"))
  .chain((all) =>
    fc.tuple(
      ...all.map(([name, dtype, size]) => {
        const length = Slice.count(size) * Safetensors.bytesPerElement(dtype)
        return fc
          .uint8Array({ minLength: length, maxLength: length })
          .map((data) => ({ name, dtype, shape: size, data }))
      })
    )
  )

const sliceIn = (size: ReadonlyArray<number>) =>
  fc.tuple(
    ...size.map((n) => fc.tuple(fc.nat(n), fc.nat(n)).map(([a, b]) => [Math.min(a, b), Math.abs(a - b)] as const))
  )

const ok = <A, E>(result: Result.Result<A, E>): A => Result.getOrThrow(result)

/** What a slice means: element by element. */
const sliceOf = (data: Uint8Array, size: ReadonlyArray<number>, box: Slice.Box, width: number) => {
  const out: Array<number> = []
  const total = Slice.count(size)
  for (let flat = 0; flat < total; flat++) {
    let rest = flat
    const point = size.map(() => 0)
    for (let i = size.length - 1; i >= 0; i--) {
      point[i] = rest % size[i]!
      rest = Math.floor(rest / size[i]!)
    }
    const inside = point.every((p, i) => p >= box.start[i]! && p < box.start[i]! + box.size[i]!)
    if (inside) out.push(...data.subarray(flat * width, (flat + 1) * width))
  }
  return Uint8Array.from(out)
}

describe("safetensors", () => {
  it("reads what it wrote, in memory and as a stream", () =>
    fc.assert(
      fc.asyncProperty(tensors, fc.dictionary(fc.string(), fc.string()), async (all, metadata) => {
        const bytes = ok(Safetensors.encode(all, metadata))
        const header = ok(Safetensors.decodeHeader(bytes, bytes.byteLength))
        assert.strictEqual(header.entries.size, all.length)
        assert.deepEqual({ ...header.metadata }, { ...metadata })
        for (const { name, dtype, shape: size, data } of all) {
          const entry = header.entries.get(name)!
          assert.deepEqual([entry.dtype, entry.shape], [dtype, size])
          assert.deepEqual(bytes.slice(header.dataOffset + entry.begin, header.dataOffset + entry.end), data)
          if (size.length > 0) assert.strictEqual(entry.begin % Safetensors.bytesPerElement(dtype), 0)
        }
        const chunks = await Effect.runPromise(Stream.runCollect(Safetensors.stream(all, metadata)))
        assert.strictEqual(Buffer.compare(Buffer.concat(chunks), bytes), 0)
      })
    ))

  it("reads any slice from a window of any size", () =>
    fc.assert(
      fc.property(
        shape.chain((size) => fc.tuple(fc.constant(size), sliceIn(size), fc.integer({ min: 1, max: 40 }))),
        ([size, parts, limit]) => {
          const box = { start: parts.map(([s]) => s), size: parts.map(([, n]) => n) }
          const data = Uint8Array.from({ length: Slice.count(size) * 2 }, (_, i) => i)
          const out = new Uint8Array(Slice.count(box.size) * 2)
          for (const read of Slice.reads(Slice.whole(size), box, limit)) {
            const bytes = data.slice(read.offset * 2, (read.offset + read.span) * 2)
            assert.isTrue(read.span <= limit || Slice.count(read.region.size) === read.span)
            Slice.copy({ bytes, box: Slice.whole(size), skip: read.offset }, { bytes: out, box }, read.region, 2)
          }
          assert.deepEqual(out, sliceOf(data, size, box, 2))
        }
      )
    ))

  it("says what is wrong with a bad file", () => {
    const good = ok(Safetensors.encode([{ name: "w", dtype: "F32", shape: [2], data: new Uint8Array(8) }]))
    const withHeader = (json: string, dataBytes = 8) => {
      const text = new TextEncoder().encode(json)
      const bytes = new Uint8Array(8 + text.byteLength + dataBytes)
      new DataView(bytes.buffer).setBigUint64(0, BigInt(text.byteLength), true)
      bytes.set(text, 8)
      return bytes
    }
    const one = (fields: string) => withHeader(`{"w":{${fields}}}`)
    const cases: ReadonlyArray<readonly [Uint8Array, Safetensors.SafetensorsError["problem"], RegExp]> = [
      [good.slice(0, 5), "Truncated", /5 bytes/],
      [good.slice(0, 20), "Truncated", /header needs/],
      [good.slice(0, good.length - 1), "Truncated", /need 8 bytes, the file holds 7/],
      [Uint8Array.from([...good, 0]), "SizeMismatch", /1 bytes after the last tensor/],
      [withHeader("{nonsense"), "BadHeader", /no JSON/],
      [withHeader("[]"), "BadHeader", /no JSON object/],
      [one(`"dtype":"Q4","shape":[2],"data_offsets":[0,8]`), "UnknownDType", /"Q4"/],
      [one(`"dtype":"F32","shape":[-2],"data_offsets":[0,8]`), "BadHeader", /shape/],
      [one(`"dtype":"F32","shape":[3],"data_offsets":[0,8]`), "SizeMismatch", /needs 12 bytes, its offsets hold 8/],
      [one(`"dtype":"F32","shape":[2],"data_offsets":[8,0]`), "BadOffsets", /\[8,0\]/],
      [
        withHeader(
          `{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]},"b":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}}`
        ),
        "BadOffsets",
        /"b" begins at 3, inside of "a"/
      ],
      [Uint8Array.from([255, 255, 255, 255, 255, 255, 255, 255, 0]), "BadHeader", /at most/]
    ]
    for (const [bytes, problem, detail] of cases) {
      const result = Safetensors.decodeHeader(bytes, bytes.byteLength)
      if (result._tag === "Success") return assert.fail(`accepted ${problem}`)
      assert.strictEqual(result.failure.problem, problem)
      assert.match(result.failure.message, detail)
    }
  })

  it.effect("reads slices from a file", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped()
      const data = Uint8Array.from({ length: 4 * 6 * 4 }, (_, i) => i)
      const bytes = yield* Effect.fromResult(Safetensors.encode([{ name: "w", dtype: "F32", shape: [4, 6], data }]))
      yield* fs.writeFile(`${folder}/a.safetensors`, bytes)
      const reader = yield* Safetensors.openFile(`${folder}/a.safetensors`)
      const box = { start: [1, 2], size: [2, 3] }
      assert.deepEqual(yield* reader.read("w"), data)
      assert.deepEqual(yield* reader.read("w", box), sliceOf(data, [4, 6], box, 4))
      const outside = yield* Effect.flip(reader.read("w", { start: [3, 0], size: [2, 6] }))
      assert.match(outside.message, /\[3:5, 0:6\] of "w" lies outside/)
      yield* fs.truncate(`${folder}/a.safetensors`, bytes.byteLength - 3)
      const cut = yield* Effect.flip(Safetensors.openFile(`${folder}/a.safetensors`))
      assert.match(cut.message, /a\.safetensors: the tensors need 96 bytes/)
    }).pipe(Effect.provide(NodeFileSystem.layer))
  )

  it.effect.skipIf(!existsSync(`${shared}/weights`))("reads published files", () =>
    Effect.gen(function* () {
      const vit = yield* Safetensors.openFile(`${shared}/weights/vit-mnist/model.safetensors`)
      const parameters = [...vit.header.entries.values()].reduce((sum, { shape: size }) => sum + Slice.count(size), 0)
      assert.strictEqual(parameters, 499_722)
      assert.strictEqual((yield* vit.read("cls_token")).byteLength, 256)
      const row = yield* vit.read("pos_embedding", { start: [0, 3, 0], size: [1, 1, 64] })
      const all = yield* vit.read("pos_embedding")
      assert.deepEqual([...row], [...all.subarray(3 * 256, 4 * 256)])
      const stories = yield* Safetensors.openFile(`${shared}/weights/stories260K/model.safetensors`)
      assert.isAbove(stories.header.entries.size, 40)
    }).pipe(Effect.provide(NodeFileSystem.layer))
  )
})
