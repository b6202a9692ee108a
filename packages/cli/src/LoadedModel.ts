/** A trained model on a backend: from a run, a checkpoint, or weights published elsewhere. */
import * as CheckpointMatch from "@tessera/core/CheckpointMatch"
import * as Host from "@tessera/core/HostArray"
import * as FileCheckpoints from "@tessera/core/layers/FileCheckpoints"
import * as Module from "@tessera/core/Module"
import * as Safetensors from "@tessera/core/Safetensors"
import type { Buffer } from "@tessera/core/services/Backend"
import { Backend } from "@tessera/core/services/Backend"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import type { SavedState } from "@tessera/core/Trainer"
import * as NameTable from "@tessera/models/import/NameTable"
import * as VitMnist from "@tessera/models/import/vitMnist"
import { mnist } from "@tessera/models/recipes/mnist"
import * as Vit from "@tessera/models/Vit"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import { basename } from "node:path"
import * as Experiment from "./Experiment.ts"
import { UsageError } from "./Failure.ts"
import * as Layers from "./Layers.ts"
import type { Recipe } from "./Recipe.ts"
import * as RunFolder from "./RunFolder.ts"

export interface LoadedModel {
  /** Model, normalisation and class count are taken from it. */
  readonly recipe: Recipe
  /** Parameters in declaration order; averaged ones where the run kept them. */
  readonly parameters: ReadonlyArray<Buffer>
  readonly origin: string
  /** Steps trained; null for imported weights. */
  readonly step: number | null
  /** Names of the classes, where they are known. */
  readonly classes: ReadonlyArray<string> | null
}

/** What the run writes into its checkpoints. */
export interface RunState {
  readonly recipe: Recipe
  readonly classes: ReadonlyArray<string> | null
}

/** Opens a run folder (its newest checkpoint), a folder of checkpoints, or one checkpoint. */
export const fromRun = Effect.fn("LoadedModel.fromRun")(function* (path: string) {
  const { folder, single } = yield* RunFolder.located(path)
  return yield* Effect.gen(function* () {
    const store = yield* CheckpointStore
    const reader = yield* store.open(single === null ? "latest" : { path: single })
    const state = reader.manifest.state as unknown as SavedState
    const run = state.run as unknown as RunState | null
    // A run resumed elsewhere has a resolved recipe: it is checked again.
    const { recipe } = yield* Effect.fromResult(
      Layers.resolve([{ source: `checkpoint ${path}`, values: (run?.recipe ?? {}) as unknown as Layers.Raw }])
    )
    const backend = yield* Backend
    const { master: dtype } = Experiment.precision(recipe)
    const leaves = Module.leaves(Vit.make(recipe.model).params)
    const averaged = reader.manifest.tensors.some((t) => t.kind === "ema")
    const expected = leaves.map(({ param, path: name }) => ({
      name,
      kind: "parameter" as const,
      dtype,
      axes: param.axes
    }))
    yield* Effect.fromResult(CheckpointMatch.match(reader.path, reader.manifest, expected, ["parameter"]))
    const buffers: Array<Buffer> = []
    for (const { param, path: name } of leaves) {
      const buffer = yield* backend.allocate({ axes: param.axes, dtype })
      const order = param.axes.map((a) => a.name)
      const kind = averaged ? "ema" : "parameter"
      yield* backend.write(buffer, yield* reader.read(name, { kind, order }))
      buffers.push(buffer)
    }
    const model: LoadedModel = {
      recipe,
      parameters: buffers,
      origin: reader.path,
      step: reader.manifest.step,
      classes: run?.classes ?? null
    }
    return model
  }).pipe(Effect.provide(FileCheckpoints.layer({ folder, owner: false })))
})

/** Layouts of published weights: the model and data they belong to, and where each tensor goes. Published results are those of f32. */
const layouts = {
  "vit-mnist": {
    names: VitMnist.names,
    values: { ...mnist, name: "vit-mnist", model: VitMnist.config, precision: "f32" }
  }
} as const
export type LayoutName = keyof typeof layouts
export const layoutNames = Object.keys(layouts) as ReadonlyArray<LayoutName>

/** Reads a safetensors file of another library through the name table of its layout. */
export const fromWeights = Effect.fn("LoadedModel.fromWeights")(function* (file: string, layout: LayoutName) {
  const fs = yield* FileSystem.FileSystem
  const backend = yield* Backend
  const { names, values } = layouts[layout]
  const { recipe } = yield* Effect.fromResult(Layers.resolve([{ source: `layout ${layout}`, values }]))
  const bytes = yield* fs
    .readFile(file)
    .pipe(
      Effect.mapError(
        (e) => new UsageError({ problem: `${file} cannot be read: ${e.message}`, hint: "give a .safetensors file" })
      )
    )
  const header = yield* Effect.fromResult(Safetensors.decodeHeader(bytes, bytes.byteLength))
  const source: Record<string, NameTable.SourceTensor> = {}
  for (const { begin, dtype, end, name, shape } of header.entries.values()) {
    if (dtype !== "F32")
      return yield* new UsageError({ problem: `${file}: tensor ${name} is ${dtype}`, hint: "layouts read F32" })
    // A copy: tensors need not begin at a multiple of 4 bytes, and slices of Node's buffers share their memory.
    const part = Uint8Array.from(bytes.subarray(header.dataOffset + begin, header.dataOffset + end))
    source[name] = { dtype, shape, data: new Float32Array(part.buffer) }
  }
  const { params } = Vit.make(recipe.model)
  const parameters = yield* Effect.fromResult(NameTable.read(names, params, source))
  const buffers: Array<Buffer> = []
  for (const { param, path } of Module.leaves(params)) {
    const buffer = yield* backend.allocate({ axes: param.axes, dtype: "f32" })
    const { axes, data } = parameters[path]!
    yield* backend.write(buffer, Host.toBytes(Host.reorder(Host.make(axes, "f32", data), param.axes)))
    buffers.push(buffer)
  }
  const model: LoadedModel = { recipe, parameters: buffers, origin: basename(file), step: null, classes: null }
  return model
})
