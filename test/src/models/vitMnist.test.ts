import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, it } from "@effect/vitest"
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Host from "@tessera/core/HostArray"
import * as Safetensors from "@tessera/core/Safetensors"
import * as Vit from "@tessera/models/Vit"
import * as NameTable from "@tessera/models/import/NameTable"
import * as VitMnist from "@tessera/models/import/vitMnist"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Result from "effect/Result"
import { existsSync } from "node:fs"
import { resolve } from "node:path"
import { gunzipSync } from "node:zlib"
import { fromParameters } from "./vit.ts"

const shared = process.env["TESSERA_SHARED"] ?? resolve(import.meta.dirname, "../../../../shared/data")
const folder = [resolve(shared, "weights/vit-mnist"), resolve(shared, "data/weights/vit-mnist")].find(existsSync)

const readSource = Effect.fnUntraced(function* (file: string) {
  const fs = yield* FileSystem.FileSystem
  const bytes = Uint8Array.from(yield* fs.readFile(file))
  const header = yield* Effect.fromResult(Safetensors.decodeHeader(bytes))
  const at = header.dataOffset
  return Object.fromEntries(
    Array.from(header.entries.values(), ({ begin, dtype, end, name, shape }) => [
      name,
      { dtype, shape, data: new Float32Array(bytes.slice(at + begin, at + end).buffer) }
    ])
  )
})

it.effect.skipIf(folder === undefined)("the published MNIST model gives the published logits", () =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const source = yield* readSource(`${folder}/model.safetensors`)
    const { params } = Vit.make(VitMnist.config)
    assert.strictEqual(Vit.parameterCount(VitMnist.config), 499_722)
    const values = yield* Effect.fromResult(NameTable.read(VitMnist.names, params, source))
    const written = Result.getOrThrow(NameTable.write(VitMnist.names, params, values))
    assert.deepStrictEqual(Object.keys(written).toSorted(), Object.keys(source).toSorted())
    for (const [name, { data, shape }] of Object.entries(source)) {
      assert.deepStrictEqual(written[name]!.shape, shape)
      assert.isTrue(
        data.every((v, i) => Object.is(v, written[name]!.data[i])),
        name
      )
    }

    const pixels = gunzipSync(yield* fs.readFile(`${folder}/mnist-t10k-first1000-images-idx3-ubyte.gz`)).subarray(16)
    const reference = JSON.parse(yield* fs.readFileString(`${folder}/reference.json`)) as {
      readonly first_16: ReadonlyArray<{ readonly logits: ReadonlyArray<number>; readonly label: number }>
    }
    const axes = Axis.list({ batch: 16, row: 28, col: 28, channel: 1 })
    const image = Host.make(
      axes,
      "f32",
      Float64Array.from(pixels.subarray(0, 16 * 784), (v) => (v / 255 - 0.1307) / 0.3081)
    )
    const results = Evaluate.runUnsafe(Vit.forward(VitMnist.config, 16), [
      ...fromParameters(VitMnist.config, values),
      image
    ])
    const logits = Host.reorder(results[0]!, Axis.list({ batch: 16, classes: 10 }))
    const expected = reference.first_16.flatMap((r) => r.logits)
    const worst = expected.reduce((most, v, i) => Math.max(most, Math.abs(v - logits.data[i]!)), 0)
    assert.isBelow(worst, 1e-5)
  }).pipe(Effect.provide(NodeFileSystem.layer))
)
