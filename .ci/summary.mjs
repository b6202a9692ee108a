// summary.mjs RESULTS CODE: prints "N passed, N failed" from vitest's results and ends with CODE, or with 1 when something failed all the same.
// Runs on the system's Node, also when the installation failed. What failed outside of a test (a file that does not load, an error
// nobody caught, a run that was cut off) counts as one failure each.
import { readFileSync } from "node:fs"

const [file, given] = process.argv.slice(2)
let code = Number(given)
let passed = 0
let failed = 0
try {
  const results = JSON.parse(readFileSync(file, "utf8"))
  passed = results.numPassedTests
  failed = results.numFailedTests
  for (const { assertionResults, status } of results.testResults) {
    if (status === "failed" && !assertionResults.some((test) => test.status === "failed")) failed++
  }
} catch {
  // No results: installation failed, or vitest ended before it wrote them.
  if (code === 0) code = 1
}
if (!(passed + failed > 0) && code === 0) code = 1
if (code !== 0 && failed === 0) failed = 1
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = code === 0 && failed > 0 ? 1 : code
