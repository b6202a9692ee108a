/** Native memory: buffers, the intermediates of one program, or a workspace that several programs use in turn. */
import { DeviceError } from "@tessera/core/Errors"
import type { TensorType } from "@tessera/core/Node"
import { bytesOf } from "@tessera/core/Node"
import type { CompileOptions, Workspace } from "@tessera/core/services/Backend"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Arena, type Block, type CpuBuffer, type Machine, settle, wrong } from "./Machine.ts"

/** Where memory comes from. guarded: an inaccessible page behind every buffer and poisoned contents, for tests. */
export type Kind = "private" | "shared" | "pinned" | "guarded"
export const kinds = { private: 0, shared: 1, pinned: 2, guarded: 3 } as const

export interface Memory {
  readonly allocate: (type: TensorType) => Effect.Effect<CpuBuffer, DeviceError, Scope.Scope>
  readonly workspace: Effect.Effect<Workspace, DeviceError, Scope.Scope>
  /** Memory for intermediates: in the workspace that the options name, else of its own. */
  readonly arena: (bytes: number, options: CompileOptions) => Effect.Effect<Block, DeviceError, Scope.Scope>
}

/** The smallest piece: nothing is empty, so that every address says something. */
const smallest = 64

const outOfMemory = (bytes: number) =>
  new DeviceError({
    backend: "cpu",
    reason: "OutOfMemory",
    detail: `cannot get ${bytes} bytes (${(bytes / 2 ** 20).toFixed(0)} MiB)`
  })

export const make = (machine: Machine, kind: number): Memory => {
  const { library } = machine
  const take = (bytes: number): Effect.Effect<bigint, DeviceError> =>
    Effect.suspend(() => {
      const address = library.memoryCreate(bytes, kind)
      return address === null ? Effect.fail(outOfMemory(bytes)) : Effect.succeed(address)
    })
  /** Gives memory back once no run works on it; nobody starts one meanwhile. */
  const giveBack = (block: Block, bytes: number): Effect.Effect<void> =>
    Effect.suspend(() => {
      const { address } = block
      block.address = 0n
      if (address === 0n) return Effect.void
      return Effect.andThen(
        settle(machine, (run) => run.bindings.includes(address)),
        Effect.sync(() => library.memoryDestroy(address, bytes, kind))
      )
    })
  const own = (bytes: number): Effect.Effect<Block, DeviceError, Scope.Scope> => {
    const size = Math.max(smallest, bytes)
    return Effect.acquireRelease(
      Effect.map(take(size), (address): Block => ({ address })),
      (block) => giveBack(block, size)
    )
  }
  const arenas = new Set<Arena>()
  /** Its programs find the new memory at their next run. */
  const grow = (arena: Arena, bytes: number): Effect.Effect<void, DeviceError> =>
    Effect.gen(function* () {
      yield* giveBack(arena.block, arena.bytes)
      arena.bytes = 0
      arena.block.address = yield* take(bytes)
      arena.bytes = bytes
    }).pipe(Effect.uninterruptible)
  return {
    allocate: (type) => Effect.map(own(bytesOf(type)), (block) => Object.assign(block, { type, bytes: bytesOf(type) })),
    workspace: Effect.acquireRelease(
      Effect.sync(() => {
        const arena: Arena = { bytes: 0, block: { address: 0n } }
        arenas.add(arena)
        return arena
      }),
      (arena) =>
        Effect.suspend(() => {
          arenas.delete(arena)
          return giveBack(arena.block, arena.bytes)
        })
    ),
    arena: Effect.fnUntraced(function* (bytes, { workspace }) {
      if (workspace === undefined) return yield* own(bytes)
      const found = [...arenas].find((a) => a === workspace)
      if (found === undefined)
        return yield* wrong("a workspace of another backend was given, or one whose scope has closed")
      const size = Math.max(smallest, bytes)
      if (found.bytes < size) yield* grow(found, size)
      return found.block
    })
  }
}
