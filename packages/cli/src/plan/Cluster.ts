/** `32xA100-80G`: how many of which device. */
import { nearest, RecipeError } from "@tessera/core/Errors"
import type { Device } from "@tessera/core/planner/Devices"
import { devices } from "@tessera/core/planner/Devices"
import * as Result from "effect/Result"

export interface Cluster {
  readonly count: number
  readonly device: Device
}

export const parse = (text: string): Result.Result<Cluster, RecipeError> => {
  const fail = (problem: string, hint: string) => Result.fail(new RecipeError({ key: "--devices", problem, hint }))
  const [, count = "", name = ""] = /^(\d+)x(.+)$/.exec(text.trim()) ?? []
  if (count === "") return fail(`"${text}" is no number of devices`, "write NUMBERxDEVICE, such as 32xA100-80G")
  const device = (devices as Readonly<Record<string, Device>>)[name]
  const names = Object.keys(devices)
  const near = nearest(name, names)
  if (device === undefined)
    return fail(`unknown device "${name}"`, near === null ? `known: ${names.join(", ")}` : `did you mean ${near}?`)
  if (Number(count) < 1) return fail(`"${text}" is no device at all`, "at least 1")
  return Result.succeed({ count: Number(count), device })
}
