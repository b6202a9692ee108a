import { assert, describe, it } from "@effect/vitest"
import * as Axis from "@tessera/core/Axis"
import * as Evaluate from "@tessera/core/Evaluate"
import * as Gradient from "@tessera/core/Gradient"
import * as Host from "@tessera/core/HostArray"
import * as Module from "@tessera/core/Module"
import * as Program from "@tessera/core/Program"
import * as T from "@tessera/core/Tensor"
import * as Positions from "@tessera/models/layers/positions"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { initial, lively, operands, pictures, program, tiny, wave } from "./vit.ts"

const run = (
  config: VitConfig.VitConfig,
  f: (output: Vit.VitOutput) => T.AnyTensor,
  options: Parameters<typeof program>[3] = {},
  seed = 1
) => Evaluate.runUnsafe(program(config, 2, f, options), operands(lively(config), pictures(config, 2), seed))[0]!

/** Complementary error function, to 1.2e-7. @source Press et al., Numerical Recipes, section 6.2 */
const erfc = (x: number): number => {
  const t = 1 / (1 + Math.abs(x) / 2)
  const coefficients = [
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223,
    0.17087277
  ]
  const value = t * Math.exp(-x * x + coefficients.reduceRight((sum, c) => sum * t + c, 0))
  return x >= 0 ? value : 2 - value
}

const mlpHead = { kind: "rosettaMlp", classes: 3, width: 5, bias: 0 } as const

describe("gradients agree with central differences", () => {
  const cases: Readonly<Record<string, VitConfig.VitConfig>> = {
    "1 class token, token pooling": tiny(),
    "8 class tokens, mean over all, NeMo head": tiny({
      classTokens: 8,
      pooling: "meanAll",
      head: { kind: "nemoMlp", classes: 3, bias: -10 }
    }),
    "no class token, mean over patches, fixed positions, MLP head": tiny({
      classTokens: 0,
      pooling: "meanPatches",
      positions: "sinCos2d",
      head: mlpHead
    }),
    "attention pooling, pre-norm, no positions, tanh GELU": tiny({
      classTokens: 0,
      pooling: "attention",
      positions: "none",
      preNorm: true,
      activation: "geluTanh"
    }),
    "heads wider than the model, no biases, projection": tiny({
      headDim: 6,
      qkvBias: false,
      patchBias: false,
      activation: "geluQuick",
      head: { kind: "projection", size: 3 }
    })
  }
  const check = (config: VitConfig.VitConfig, train: boolean) => {
    const loss = (o: Vit.VitOutput) => {
      const out = (o.logits ?? o.projected) as T.AnyTensor as T.Tensor<"batch" | "classes">
      return T.mean(T.sin(out), ...(["batch", out.type.axes.find((a) => a.name !== "batch")!.name] as Array<any>))
    }
    const traced = program(config, 2, loss, { train })
    assert.isNull(Program.check(traced))
    const params = lively(config)
    const given = operands(params, pictures(config, 2))
    const wrt = [...params.map((_, i) => i), params.length]
    const results = Evaluate.runUnsafe(Gradient.valueAndGrad(traced, wrt), given)
    const h = 1e-5
    // One random direction through all parameters and the picture at once.
    const direction = wrt.map((i) => wave(given[i]!.data.length, i + 2))
    const at = (s: number) =>
      Evaluate.runUnsafe(
        traced,
        given.map((x, i) => (i < wrt.length ? { ...x, data: x.data.map((v, k) => v + s * h * direction[i]![k]!) } : x))
      )[0]!.data[0]!
    const measured = (at(1) - at(-1)) / (2 * h)
    const computed = wrt.reduce((total, i) => {
      const gradient = Host.reorder(results[1 + i]!, given[i]!.axes)
      return total + gradient.data.reduce((t, v, k) => t + v * direction[i]![k]!, 0)
    }, 0)
    assert.isAbove(Math.abs(measured), 1e-4)
    assert.closeTo(computed, measured, 1e-6 * Math.max(1, Math.abs(measured)))
  }
  for (const [name, config] of Object.entries(cases)) it(name, () => check(config, false))
  it("training, with every kind of drop", () =>
    check(
      tiny({ dropout: 0.2, mlpDropout: 0.2, attentionDropout: 0.3, dropPath: 0.4, dropPatch: 0.5, classTokens: 2 }),
      true
    ))
})

describe("beginnings", () => {
  const ready = (config: VitConfig.VitConfig) =>
    Evaluate.runUnsafe(
      program(config, 3, (o) => o.logits!),
      operands(initial(config), pictures(config, 3))
    )[0]!

  it("a Rosetta head begins at the loss ln 1000, exactly", () => {
    const config = tiny({ head: { kind: "rosettaMlp", classes: 1000, width: 16, bias: 0 } })
    const labels = T.input({ axes: Axis.list({ batch: 3 }), dtype: "i32" })
    const logits = ready(config)
    const input = T.input({ axes: logits.axes, dtype: "f32" }) as T.Tensor<"batch" | "classes">
    const loss = T.mean(
      T.softmaxCrossEntropy(input, labels as T.Tensor<"batch", "int">, { classes: "classes" }),
      "batch"
    )
    const [value] = Evaluate.runUnsafe(Program.make({ input, labels }, loss), [
      logits,
      Host.make(labels.type.axes, "i32", [0, 512, 999])
    ])
    assert.closeTo(value!.data[0]!, Math.log(1000), 1e-12)
    assert.strictEqual(Math.max(...logits.data.map(Math.abs)), 0)
  })

  it("a NeMo head begins near -10", () => {
    const { data } = ready(
      tiny({ hidden: 32, mlp: 64, head: { kind: "nemoMlp", classes: 50, bias: -10 }, initialisation: "nemo" })
    )
    assert.isTrue(data.every((v) => Math.abs(v + 10) < 2))
    assert.closeTo(data.reduce((a, b) => a + b, 0) / data.length, -10, 0.3)
  })

  it("a linear head begins at its bias", () => {
    const { data } = ready(tiny({ head: { kind: "linear", classes: 4, kernel: "zeros", bias: -6.9 } }))
    assert.isTrue(data.every((v) => v === -6.9))
  })

  it("decay is off for biases and norms, on for kernels, positions and class tokens", () => {
    const off = Module.leaves(Vit.make(tiny({ preNorm: true, pooling: "attention" })).params).filter(
      (l) => !l.param.decay
    )
    assert.isTrue(off.every(({ path }) => /(bias|Bias|gamma|beta)$/.test(path)))
    const on = Module.leaves(Vit.make(tiny({ preNorm: true, pooling: "attention" })).params).filter(
      (l) => l.param.decay
    )
    assert.deepStrictEqual(
      on.map((l) => l.path),
      [
        "patchEmbed/weight",
        "classToken",
        "positions",
        "blocks/attention/query",
        "blocks/attention/key",
        "blocks/attention/value",
        "blocks/attention/out",
        "blocks/mlp/in/weight",
        "blocks/mlp/out/weight",
        "pool/probe",
        "pool/attention/query",
        "pool/attention/key",
        "pool/attention/value",
        "pool/attention/out",
        "pool/mlp/in/weight",
        "pool/mlp/out/weight",
        "head/weight"
      ]
    )
  })

  it("NeMo kernels have standard deviation 0.02, those into the residual stream 0.02 / sqrt(2 layers)", () => {
    const config = tiny({ hidden: 32, mlp: 64, layers: 8, initialisation: "nemo" })
    const values = initial(config)
    const std = (path: string) => {
      const { data } = values[Module.leaves(Vit.make(config).params).findIndex((l) => l.path === path)]!
      return Math.sqrt(data.reduce((t, v) => t + v * v, 0) / data.length)
    }
    assert.closeTo(std("blocks/attention/query"), 0.02, 0.0006)
    assert.closeTo(std("blocks/mlp/in/weight"), 0.02, 0.0006)
    assert.closeTo(std("blocks/attention/out"), 0.005, 0.00015)
    assert.closeTo(std("blocks/mlp/out/weight"), 0.005, 0.00015)
  })
})

describe("what training leaves out", () => {
  it("rates change nothing in evaluation, rate 0 changes nothing in training", () => {
    const plain = run(tiny(), (o) => o.logits!)
    const rates = { dropout: 0.5, mlpDropout: 0.5, attentionDropout: 0.5, dropPath: 0.5, dropPatch: 0.5 }
    assert.deepStrictEqual(run(tiny(rates), (o) => o.logits!).data, plain.data)
    assert.deepStrictEqual(run(tiny(), (o) => o.logits!, { train: true }).data, plain.data)
    assert.notDeepEqual(run(tiny(rates), (o) => o.logits!, { train: true }).data, plain.data)
  })

  it("drop patch keeps max(1, floor(N (1 - r))) patches and every class token", () => {
    const lengths = (dropPatch: number, classTokens = 3) =>
      Axis.find(
        program(tiny({ dropPatch, classTokens }), 2, (o) => o.tokens, { train: true }).outputs[0]!.type.axes,
        "seq"
      )!.size
    assert.strictEqual(lengths(0), 3 + 4)
    assert.strictEqual(lengths(0.5), 3 + 2)
    assert.strictEqual(lengths(0.3), 3 + 2)
    assert.strictEqual(lengths(0.25, 1), 1 + 3)
    assert.strictEqual(lengths(0.99), 3 + 1)
  })

  it("kept patches are distinct patches of the sample, other ones in other samples and seeds", () => {
    // A model without blocks or positions whose embedding keeps the patches apart: tokens are normalised patch embeddings.
    const config = tiny({
      layers: 0,
      classTokens: 0,
      pooling: "meanPatches",
      positions: "none",
      imageSize: { height: 16, width: 16 },
      head: { kind: "none" }
    })
    const all = Host.reorder(
      run(config, (o) => o.tokens),
      Axis.list({ batch: 2, seq: 16, embed: 8 })
    )
    const row = (x: Host.HostArray, sample: number, i: number, seq: number) =>
      Array.from(x.data.subarray((sample * seq + i) * 8, (sample * seq + i + 1) * 8), (v) => v.toFixed(9)).join()
    const choices = [1, 2].flatMap((seed) => {
      const kept = Host.reorder(
        run({ ...config, dropPatch: 0.5 }, (o) => o.tokens, { train: true }, seed),
        Axis.list({ batch: 2, seq: 8, embed: 8 })
      )
      return [0, 1].map((sample) => {
        const known = Array.from({ length: 16 }, (_, i) => row(all, sample, i, 16))
        const chosen = Array.from({ length: 8 }, (_, i) => known.indexOf(row(kept, sample, i, 8)))
        assert.strictEqual(new Set(chosen).size, 8)
        assert.isTrue(chosen.every((i) => i >= 0))
        return chosen.join()
      })
    })
    assert.strictEqual(new Set(choices).size, 4)
  })

  it("drop path: rates grow linearly over the layers, a dropped branch is absent, a kept one scaled; the expectation stays", () => {
    const config = tiny({ layers: 3, dropPath: 0.5, positions: "none" })
    const batch = 64
    const features = (train: boolean, seed: number) => {
      const given = operands(lively(config), pictures(config, batch), seed)
      const [x] = Evaluate.runUnsafe(
        program(config, batch, (o) => o.captured["features"]!, { train, features: true }),
        given
      )
      return Host.reorder(x!, Axis.list({ layers: 3, batch, seq: 5, embed: 8 }))
    }
    const [plain, first] = [features(false, 1), features(true, 1)]
    // Layer 0 has rate 0.
    assert.isBelow(Host.distance(Host.at(plain, "layers", 0), Host.at(first, "layers", 0)), 1e-12)
    // In layer 1 (rate 0.25) both branches are dropped for about 1 in 16 samples, whose value then does not change.
    const still = (layer: number) => {
      const [before, after] = [Host.at(first, "layers", layer - 1), Host.at(first, "layers", layer)]
      return Array.from(
        { length: batch },
        (_, b) => Host.distance(Host.at(before, "batch", b), Host.at(after, "batch", b)) === 0
      ).filter(Boolean).length
    }
    assert.isAtLeast(still(1), 1)
    assert.isAtMost(still(1), 12)
    assert.isAtLeast(still(2), 8)
    assert.isAtMost(still(2), 26)
  })

  it("drop path keeps the mean", () => {
    // One layer has rate 0; the last of two layers has the whole rate. A zero attention makes the MLP branch of layer 1 the only random part.
    const config = tiny({ layers: 2, dropPath: 0.3, classTokens: 0, pooling: "meanPatches", positions: "none" })
    const batch = 600
    const params = Module.leaves(Vit.make(config).params).map(({ path }, i) => {
      const value = lively(config)[i]!
      return path.startsWith("blocks/attention/") ? { ...value, data: value.data.map(() => 0) } : value
    })
    const one = pictures(config, 1)
    const image = {
      ...pictures(config, batch),
      data: Float64Array.from({ length: one.data.length * batch }, (_, i) => one.data[i % one.data.length]!)
    }
    const features = (train: boolean) => {
      const [x] = Evaluate.runUnsafe(
        program(config, batch, (o) => o.captured["features"]!, { train, features: true }),
        operands(params, image)
      )
      return Host.at(x!, "layers", 1)
    }
    const [expected, drawn] = [features(false), features(true)]
    const before = Host.at(expected, "batch", 0).data
    const mean = before.map((_, k) => {
      let total = 0
      for (let b = 0; b < batch; b++) total += Host.at(drawn, "batch", b).data[k]!
      return total / batch
    })
    const size = Math.max(...before.map(Math.abs))
    assert.isTrue(mean.every((v, k) => Math.abs(v - before[k]!) < 0.12 * size))
  })
})

describe("outputs", () => {
  it("attention weights are rows of probabilities and leave the model's values alone", () => {
    const config = tiny()
    const weights = run(config, (o) => o.captured["attention"]!, { attention: true })
    assert.deepStrictEqual(
      [...Axis.names(weights.axes)].toSorted(),
      ["batch", "headDim", "heads", "keySeq", "layers", "seq"].filter((n) => n !== "headDim")
    )
    const rows = Host.reorder(weights, Axis.list({ layers: 2, batch: 2, heads: 2, seq: 5, keySeq: 5 }))
    for (let r = 0; r < rows.data.length / 5; r++)
      assert.closeTo(
        rows.data.subarray(5 * r, 5 * r + 5).reduce((a, b) => a + b, 0),
        1,
        1e-12
      )
    const direct = Vit.attentionWeights(config)
    const image = T.input({ axes: pictures(config, 2).axes, dtype: "f32" }) as Vit.Image
    const params = Module.inputs(direct.params)
    const traced = Program.make({ params, image }, direct.apply(params, image, Module.evaluation))
    assert.isBelow(
      Host.distance(Evaluate.runUnsafe(traced, [...lively(config), pictures(config, 2)])[0]!, weights),
      1e-15
    )
    assert.isBelow(
      Host.distance(
        run(config, (o) => o.logits!, { attention: true }),
        run(config, (o) => o.logits!)
      ),
      1e-12
    )
  })

  it("features are the outputs of the blocks; the last one, normalised, is `tokens`", () => {
    const features = run(tiny(), (o) => o.captured["features"]!, { features: true })
    assert.deepStrictEqual(features.axes.map((a) => `${a.name} ${a.size}`).toSorted(), [
      "batch 2",
      "embed 8",
      "layers 2",
      "seq 5"
    ])
    const shorter = run(tiny(), (o) => o.tokens)
    const last = Host.at(features, "layers", 1)
    const params = Module.leaves(Vit.make(tiny()).params)
    const [gamma, beta] = ["gamma", "beta"].map(
      (n) => lively(tiny())[params.findIndex((l) => l.path === `finalNorm/${n}`)]!.data
    )
    const rows = Host.reorder(last, Axis.list({ batch: 2, seq: 5, embed: 8 })).data
    const expected = Host.reorder(shorter, Axis.list({ batch: 2, seq: 5, embed: 8 })).data
    for (let r = 0; r < 10; r++) {
      const x = rows.subarray(8 * r, 8 * r + 8)
      const mean = x.reduce((a, b) => a + b, 0) / 8
      const variance = x.reduce((t, v) => t + (v - mean) ** 2, 0) / 8
      x.forEach((v, k) =>
        assert.closeTo(((v - mean) / Math.sqrt(variance + 1e-5)) * gamma![k]! + beta![k]!, expected[8 * r + k]!, 1e-12)
      )
    }
  })

  it("pooling: the first class token, the mean of patches, the mean of all", () => {
    const config = tiny({ classTokens: 2 })
    const tokens = Host.reorder(
      run(config, (o) => o.tokens),
      Axis.list({ batch: 2, seq: 6, embed: 8 })
    )
    const mean = (from: number, to: number) =>
      Float64Array.from({ length: 16 }, (_, i) => {
        let total = 0
        for (let s = from; s < to; s++) total += tokens.data[(Math.floor(i / 8) * 6 + s) * 8 + (i % 8)]!
        return total / (to - from)
      })
    const pooled = (pooling: "token" | "meanPatches" | "meanAll") =>
      Host.reorder(
        run({ ...config, pooling }, (o) => o.pooled),
        Axis.list({ batch: 2, embed: 8 })
      ).data
    const near = (a: Float64Array, b: Float64Array) => a.forEach((v, i) => assert.closeTo(v, b[i]!, 1e-12))
    near(pooled("token"), mean(0, 1))
    near(pooled("meanPatches"), mean(2, 6))
    near(pooled("meanAll"), mean(0, 6))
  })

  it("fixed positions: column waves, then row waves, at wavelengths from 2 pi to 20,000 pi", () => {
    const [found] = Evaluate.runUnsafe(Program.make({}, Positions.sinCos2d({ rows: 2, cols: 3 }, 12)), [])
    const { data } = Host.reorder(found!, Axis.list({ patch: 6, embed: 12 }))
    for (let patch = 0; patch < 6; patch++) {
      const angles = (at: number) => [0, 1, 2].map((k) => at * 10_000 ** (-k / 2))
      const [across, down] = [angles(patch % 3), angles(Math.floor(patch / 3))]
      const expected = [...across.map(Math.sin), ...across.map(Math.cos), ...down.map(Math.sin), ...down.map(Math.cos)]
      expected.forEach((v, k) => assert.closeTo(data[patch * 12 + k]!, v, 1e-12))
    }
  })

  it("attention pooling is attention of one probe, then an MLP with its residual", () => {
    const config = tiny({ classTokens: 0, pooling: "attention", headDim: 3 })
    const tokens = Host.reorder(
      run(config, (o) => o.tokens),
      Axis.list({ batch: 2, seq: 4, embed: 8 })
    ).data
    const pooled = Host.reorder(
      run(config, (o) => o.pooled),
      Axis.list({ batch: 2, embed: 8 })
    ).data
    const paths = Module.leaves(Vit.make(config).params).map((l) => l.path)
    const values = lively(config)
    const p = (path: string) => values[paths.indexOf(`pool/${path}`)]!.data
    const range = (n: number) => Array.from({ length: n }, (_, i) => i)
    const total = (n: number, f: (i: number) => number) => range(n).reduce((t, i) => t + f(i), 0)
    const gelu = (x: number) => x * (1 - 0.5 * erfc(x / Math.SQRT2))
    const heads = range(2).flatMap((h) => range(3).map((d) => [h, d] as const))
    const map = (name: string, x: (e: number) => number, h: number, d: number) =>
      total(8, (e) => x(e) * p(`attention/${name}`)[(e * 2 + h) * 3 + d]!) + p(`attention/${name}Bias`)[h * 3 + d]!
    for (const b of [0, 1]) {
      const token = (s: number) => (e: number) => tokens[(b * 4 + s) * 8 + e]!
      const mixed = heads.map(([h, d]) => {
        const score = (s: number) =>
          Math.exp(
            total(3, (i) => map("query", (e) => p("probe")[e]!, h, i) * map("key", token(s), h, i)) / Math.sqrt(3)
          )
        return total(4, (s) => score(s) * map("value", token(s), h, d)) / total(4, score)
      })
      const x = range(8).map(
        (e) => total(6, (i) => mixed[i]! * p("attention/out")[i * 8 + e]!) + p("attention/outBias")[e]!
      )
      const mean = total(8, (e) => x[e]!) / 8
      const deviation = Math.sqrt(total(8, (e) => (x[e]! - mean) ** 2) / 8 + config.epsilon)
      const y = x.map((v, e) => ((v - mean) / deviation) * p("norm/gamma")[e]! + p("norm/beta")[e]!)
      const inner = range(12).map((m) =>
        gelu(total(8, (e) => y[e]! * p("mlp/in/weight")[e * 12 + m]!) + p("mlp/in/bias")[m]!)
      )
      x.forEach((v, e) =>
        assert.closeTo(
          pooled[b * 8 + e]!,
          v + total(12, (m) => inner[m]! * p("mlp/out/weight")[m * 8 + e]!) + p("mlp/out/bias")[e]!,
          1e-6
        )
      )
    }
  })

  it("a patch is embedded in the order (row, column, channel)", () => {
    const config = tiny({
      layers: 0,
      classTokens: 0,
      pooling: "meanPatches",
      positions: "none",
      patchBias: false,
      head: { kind: "none" }
    })
    const image = pictures(config, 1)
    const weight = lively(config)[0]!
    const embedded = Array.from({ length: 8 }, (_, e) => {
      let total = 0
      // The second patch of the first row: rows 0..3, columns 4..7.
      for (let r = 0; r < 4; r++)
        for (let c = 0; c < 4; c++)
          for (let k = 0; k < 2; k++)
            total += image.data[(r * 8 + 4 + c) * 2 + k]! * weight.data[((r * 4 + c) * 2 + k) * 8 + e]!
      return total
    })
    const params = lively(config).map((p) =>
      p.axes.length === 1 ? { ...p, data: p.data.map((_, i) => (p === lively(config)[1] ? i : 1)) } : p
    )
    const [tokens] = Evaluate.runUnsafe(
      program(config, 1, (o) => o.tokens),
      operands(params, image)
    )
    const found = Host.reorder(tokens!, Axis.list({ batch: 1, seq: 4, embed: 8 })).data.subarray(8, 16)
    const mean = embedded.reduce((a, b) => a + b, 0) / 8
    const deviation = Math.sqrt(embedded.reduce((t, v) => t + (v - mean) ** 2, 0) / 8 + config.epsilon)
    embedded.forEach((v, i) => assert.closeTo((v - mean) / deviation + 1, found[i]!, 1e-12))
  })
})

describe("configurations", () => {
  const size = { patch: 16, hidden: 192, mlp: 768, heads: 3, layers: 12 }
  const message = (input: unknown) => Result.getOrThrow(Result.flip(VitConfig.decode(input))).message

  it("defaults are filled in, alike by make and decode", () => {
    assert.deepStrictEqual(Result.getOrThrow(VitConfig.decode(size)), VitConfig.make(size))
  })

  it("contradictions name the key and the nearest legal values", () => {
    assert.strictEqual(
      message({ ...size, heads: 5 }),
      "heads: hidden 192 is not divisible by heads 5; nearest legal: 4 or 6"
    )
    assert.strictEqual(
      message({ ...size, patch: 15 }),
      "patch: image 224 x 224 is not divisible by patch 15; nearest legal: 14 or 16"
    )
    assert.include(message({ ...size, classTokens: 0 }), "pooling token needs a class token")
    assert.include(message({ ...size, hidden: 6, heads: 3, positions: "sinCos2d" }), "divisible by 4")
    assert.isTrue(Result.isSuccess(VitConfig.decode({ ...size, heads: 5, headDim: 64 })))
  })

  it("values of the wrong kind and unknown keys are refused", () => {
    assert.strictEqual(message({ ...size, dropout: 1 }).includes("dropout"), true)
    assert.include(message({ ...size, layers: 1.5 }), "layers")
    assert.include(message({ ...size, pooling: "gap" }), "pooling")
    assert.include(message({ ...size, drop_path: 0.1 }), "did you mean dropPath?")
    assert.include(
      String(Schema.decodeUnknownResult(VitConfig.VitConfig)({ ...size, heads: 5 })),
      "nearest legal: 4 or 6"
    )
  })

  it("a model of a contradictory configuration, and a picture of another size, are program errors", () => {
    assert.throws(() => Vit.make(VitConfig.make({ ...size, heads: 5 })), /nearest legal: 4 or 6/)
    const other = { ...tiny(), imageSize: { height: 16, width: 8 } }
    const image = T.input({ axes: pictures(other, 1).axes, dtype: "f32" }) as Vit.Image
    const vit = Vit.make(tiny())
    assert.throws(() => vit.apply(Module.inputs(vit.params), image, Module.evaluation), /row=8/)
  })
})
