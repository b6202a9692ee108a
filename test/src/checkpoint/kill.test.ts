import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import * as FileCheckpoints from "@tessera/core/layers/FileCheckpoints"
import { CheckpointStore } from "@tessera/core/services/CheckpointStore"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import { spawn } from "node:child_process"
import { resolve } from "node:path"
import { stepOf } from "./samples.ts"

const script = resolve(import.meta.dirname, "saveForever.ts")

/** Starts the saver, kills it `delay` ms after its first report, and gives the last step that it reported as saved. */
const killedAfter = (folder: string, delay: number) =>
  Effect.callback<number>((resume) => {
    const child = spawn(process.execPath, [script, folder], { stdio: ["ignore", "pipe", "inherit"] })
    let output = ""
    child.stdout.on("data", (data: Buffer) => {
      if (output === "") setTimeout(() => child.kill("SIGKILL"), delay)
      output += data.toString()
    })
    child.on("close", () => resume(Effect.succeed(Number(output.trimEnd().split("\n").at(-1)))))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

describe("a process that is killed while it saves", () => {
  it.live("leaves a valid checkpoint, at least as new as the last one it reported", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped({ prefix: "killed-" })
      for (let round = 0; round < 10; round++) {
        const reported = yield* killedAfter(folder, Math.random() * 60)
        const open = Effect.gen(function* () {
          const store = yield* CheckpointStore
          const reader = yield* store.open("latest")
          assert.strictEqual(reader.skipped.length, 0)
          return yield* stepOf(reader)
        })
        const store = FileCheckpoints.layer({ folder, keepLast: 1 }).pipe(Layer.provide(NodeFileSystem.layer))
        const step = yield* open.pipe(Effect.scoped, Effect.provide(store))
        assert.isAtLeast(step, reported)
        assert.isAtMost(step, reported + 1)
        assert.isTrue((yield* fs.readDirectory(folder)).every((name) => name.startsWith("step-")))
      }
    }).pipe(Effect.scoped, Effect.provide(NodeFileSystem.layer))
  )
})
