import { existsSync } from "node:fs"
import { join, resolve } from "node:path"

const beside = resolve(import.meta.dirname, "../../../shared/data")

/** Path of real test data: below $TESSERA_SHARED, or below ../shared/data beside the checkout. */
export const sharedData = (path: string): string => {
  const folder = process.env["TESSERA_SHARED"] ?? beside
  const found = join(folder, path)
  if (!existsSync(found)) {
    throw new Error(`this test needs real data: ${found} does not exist; put it there or set TESSERA_SHARED`)
  }
  return found
}
