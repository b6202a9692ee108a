import { assert, it } from "@effect/vitest"
import { sharedData } from "../shared.ts"
import { tessera } from "./tessera.ts"

it("the published MNIST model has exactly 9,721 of 10,000 test digits right", { timeout: 120_000 }, () => {
  const weights = sharedData("weights/vit-mnist/model.safetensors")
  const { code, err, out } = tessera(
    "evaluate",
    "--weights",
    weights,
    "--layout",
    "vit-mnist",
    "--data",
    "mnist",
    "--json"
  )
  assert.strictEqual(code, 0, err)
  const { accuracy, correct, count, loss } = JSON.parse(out) as Record<string, number>
  assert.deepStrictEqual([accuracy, correct, count], [0.9721, 9721, 10_000])
  assert.strictEqual(loss!.toFixed(4), "0.0871")
})
