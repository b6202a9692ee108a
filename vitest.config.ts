import { defineConfig } from "vitest/config"

// .ci/run reads the counts from this file.
const results = process.env["TESSERA_TEST_RESULTS"]

// Ranks that share one process in tests each wait in a thread of libuv; real ranks have a process each.
process.env["UV_THREADPOOL_SIZE"] ??= "24"

export default defineConfig({
  test: {
    include: ["test/src/**/*.test.ts"],
    exclude: ["**/*.long.test.ts", "**/node_modules/**"],
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // What a passing test logs is noise.
    silent: "passed-only",
    slowTestThreshold: 5_000,
    // A failed comparison of two models' weights would otherwise print, and compute, a difference of millions of lines.
    diff: { truncateThreshold: 200, maxDepth: 4 },
    chaiConfig: { truncateThreshold: 200 },
    reporters: results === undefined ? ["default"] : ["default", ["json", { outputFile: results }]]
  }
})
