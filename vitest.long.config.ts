import { defineConfig, mergeConfig } from "vitest/config"
import base from "./vitest.config.ts"

const { exclude: _, include: __, ...test } = base.test ?? {}

/** The slow proofs: minutes to hours. */
export default mergeConfig(
  { ...base, test },
  defineConfig({
    test: {
      include: ["test/src/**/*.long.test.ts"],
      exclude: ["**/node_modules/**"],
      testTimeout: 3_600_000,
      hookTimeout: 600_000
    }
  })
)
