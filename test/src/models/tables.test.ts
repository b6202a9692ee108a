import { assert, describe, it } from "@effect/vitest"
import * as Presets from "@tessera/models/presets"
import * as Vit from "@tessera/models/Vit"
import type { Head } from "@tessera/models/VitConfig"

const linear: Head = { kind: "linear", classes: 1000, kernel: "zeros", bias: 0 }
const rosetta: Head = { kind: "rosettaMlp", classes: 1000, width: 768, bias: 0 }

describe("parameters of the presets", () => {
  // name, no head, linear head, NeMo pre-training, Rosetta pre-training; null where nobody publishes one
  const table: ReadonlyArray<readonly [Presets.Name, number, number, number | null, number | null]> = [
    ["B/16", 85_798_656, 86_567_656, 87_169_000, 87_158_248],
    ["L/16", 303_301_632, 304_326_632, 305_390_568, 304_857_832],
    ["H/16", 630_918_400, 632_199_400, 633_857_000, 632_671_208],
    ["H/14", 630_764_800, 632_045_800, 633_703_400, 632_517_608],
    ["g/14", 1_011_202_432, 1_012_611_432, 1_014_615_016, 1_013_053_544],
    ["G/14", 1_842_775_680, 1_844_440_680, 1_847_234_536, 1_844_823_400],
    ["B/32", 87_455_232, 88_224_232, 88_825_576, 88_814_824],
    ["S/16", 21_665_664, 22_050_664, null, null],
    ["e/14", 3_805_421_312, 3_807_214_312, null, null]
  ]
  for (const [name, bare, withLinear, nemo, withRosetta] of table) {
    it(name, () => {
      const config = Presets.get(name)
      assert.strictEqual(Vit.parameterCount(config), bare)
      assert.strictEqual(Vit.parameterCount(config, { head: linear }), withLinear)
      if (nemo !== null) assert.strictEqual(Vit.parameterCount(Presets.nemoPretrain(config)), nemo)
      if (withRosetta !== null) assert.strictEqual(Vit.parameterCount(config, { head: rosetta }), withRosetta)
      if (withRosetta !== null) assert.strictEqual(Vit.parameterCount(Presets.rosettaPretrain(config)), withRosetta)
    })
  }

  it("integers asserted by google-research/vision_transformer vit_jax/models_test.py", () => {
    const gap = (name: Presets.Name) => ({
      ...Presets.get(name),
      classTokens: 0,
      pooling: "meanPatches" as const,
      head: linear
    })
    assert.strictEqual(Vit.parameterCount({ ...Presets.get("B/8"), head: linear }), 86_576_872)
    assert.strictEqual(Vit.parameterCount(gap("B/16")), 86_566_120)
    assert.strictEqual(Vit.parameterCount({ ...Presets.get("L/32"), head: linear }), 306_535_400)
    assert.strictEqual(Vit.parameterCount({ ...Presets.get("S/16"), head: linear }), 22_050_664)
    assert.strictEqual(Vit.parameterCount(gap("S/16")), 22_049_896)
    assert.strictEqual(Vit.parameterCount({ ...Presets.get("S/32"), head: linear }), 22_878_952)
    assert.strictEqual(Vit.parameterCount({ ...Presets.get("Ti/16"), head: linear }), 5_717_416)
  })

  it("CLIP vision towers of open_clip", () => {
    const tower = (name: Presets.Name, size: number) =>
      Vit.parameterCount({ ...Presets.get(name), patchBias: false, preNorm: true, head: { kind: "projection", size } })
    assert.strictEqual(tower("B/32", 512), 87_849_216)
    assert.strictEqual(tower("B/16", 512), 86_192_640)
    assert.strictEqual(tower("L/14", 768), 303_966_208)
    assert.strictEqual(tower("H/14", 1024), 632_076_800)
    assert.strictEqual(tower("g/14", 1024), 1_012_645_632)
    assert.strictEqual(tower("G/14", 1280), 1_844_907_264)
    assert.strictEqual(tower("e/14", 1280), 3_807_716_864)
  })
})

describe("forward FLOPs, counted on the traced program", () => {
  const giga = (flops: number) => (flops / 1e9).toFixed(3)

  it("at 224 pixels", () => {
    const table: ReadonlyArray<readonly [Presets.Name, string]> = [
      ["B/32", "8.817"],
      ["B/16", "35.126"],
      ["L/16", "123.107"],
      ["L/14", "162.024"],
      ["H/16", "254.627"],
      ["H/14", "334.588"],
      ["g/14", "534.060"],
      ["G/14", "967.492"],
      ["e/14", "1981.350"]
    ]
    for (const [name, expected] of table) assert.strictEqual(giga(Vit.forwardFlops(Presets.get(name))), expected, name)
  })

  it("at 384 pixels", () => {
    assert.strictEqual(giga(Vit.forwardFlops(Presets.at(Presets.get("B/16"), 384))), "110.967")
    assert.strictEqual(giga(Vit.forwardFlops(Presets.at(Presets.get("L/16"), 384))), "382.131")
  })

  it("with NeMo's 8 class tokens", () => {
    const table: ReadonlyArray<readonly [Presets.Name, string]> = [
      ["B/16", "36.419"],
      ["L/16", "127.611"],
      ["H/16", "263.895"],
      ["H/14", "343.993"],
      ["g/14", "549.011"],
      ["G/14", "994.420"]
    ]
    for (const [name, expected] of table) {
      assert.strictEqual(
        giga(Vit.forwardFlops(Presets.nemoPretrain(Presets.get(name)), { head: { kind: "none" } })),
        expected,
        name
      )
    }
  })

  it("a head adds 2 x hidden x classes", () => {
    const config = Presets.get("B/16")
    assert.strictEqual(Vit.forwardFlops(config, { head: linear }) - Vit.forwardFlops(config), 2 * 768 * 1000)
  })
})
