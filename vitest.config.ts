import { defineConfig } from "vitest/config"

export default defineConfig({
  test: { include: ["test/src/**/*.test.ts"], exclude: ["**/*.long.test.ts", "**/node_modules/**"], maxWorkers: 2, testTimeout: 60_000 }
})
