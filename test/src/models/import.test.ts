import { assert, describe, it } from "@effect/vitest"
import * as Axis from "@tessera/core/Axis"
import * as Module from "@tessera/core/Module"
import * as Vit from "@tessera/models/Vit"
import type * as VitConfig from "@tessera/models/VitConfig"
import * as Finetune from "@tessera/models/import/finetune"
import * as NameTable from "@tessera/models/import/NameTable"
import * as PositionInterpolation from "@tessera/models/import/positionInterpolation"
import * as VitNames from "@tessera/models/import/vitNames"
import * as Result from "effect/Result"
import * as fc from "fast-check"
import { tiny, wave } from "./vit.ts"

const randomParameters = (config: VitConfig.VitConfig): NameTable.Parameters =>
  Object.fromEntries(
    Module.leaves(Vit.make(config).params).map(({ param, path }, i) => [
      path,
      { axes: param.axes, data: Float32Array.from(wave(Axis.count(param.axes), i + 1)) }
    ])
  )

describe("name tables", () => {
  const config = fc
    .record({
      layers: fc.integer({ min: 1, max: 3 }),
      heads: fc.integer({ min: 1, max: 3 }),
      headDim: fc.integer({ min: 1, max: 4 }),
      qkvBias: fc.boolean()
    })
    .map((changes) => tiny(changes))
  const tables: Readonly<Record<string, (c: VitConfig.VitConfig) => NameTable.NameTable>> = {
    huggingFace: VitNames.huggingFace,
    "huggingFace without prefix": (c) => VitNames.huggingFace(c, { prefix: "" }),
    timm: VitNames.timm
  }
  for (const [name, table] of Object.entries(tables)) {
    it(`${name}: reading what was written gives the same parameters, and the other way round`, () => {
      fc.assert(
        fc.property(config, (c) => {
          const { params } = Vit.make(c)
          const values = randomParameters(c)
          const source = Result.getOrThrow(NameTable.write(table(c), params, values))
          const back = Result.getOrThrow(NameTable.read(table(c), params, source))
          assert.deepStrictEqual(Object.keys(back).toSorted(), Object.keys(values).toSorted())
          for (const [path, value] of Object.entries(values)) assert.deepStrictEqual(back[path], value, path)
          assert.deepStrictEqual(Result.getOrThrow(NameTable.write(table(c), params, back)), source)
        }),
        { numRuns: 15 }
      )
    })
  }

  it("vit-pytorch round trip", () => {
    const c = tiny({ qkvBias: false })
    const { params } = Vit.make(c)
    const values = randomParameters(c)
    const source = Result.getOrThrow(NameTable.write(VitNames.vitPytorch(c), params, values))
    assert.deepStrictEqual(source["transformer.layers.1.0.fn.to_qkv.weight"]!.shape, [24, 8])
    const back = Result.getOrThrow(NameTable.read(VitNames.vitPytorch(c), params, source))
    for (const [path, value] of Object.entries(values)) assert.deepStrictEqual(back[path], value, path)
  })

  it("a timm checkpoint and a Hugging Face checkpoint of the same parameters hold the same numbers under the documented shapes", () => {
    const c = tiny({ heads: 2, headDim: 4 })
    const { params } = Vit.make(c)
    const values = randomParameters(c)
    const [timm, hf] = [VitNames.timm, VitNames.huggingFace].map((t) =>
      Result.getOrThrow(NameTable.write(t(c), params, values))
    )
    assert.deepStrictEqual(timm!["cls_token"]!.shape, [1, 1, 8])
    assert.deepStrictEqual(timm!["pos_embed"]!.shape, [1, 5, 8])
    assert.deepStrictEqual(timm!["patch_embed.proj.weight"]!.shape, [8, 2, 4, 4])
    assert.deepStrictEqual(timm!["blocks.1.attn.qkv.weight"]!.shape, [24, 8])
    assert.deepStrictEqual(timm!["blocks.1.mlp.fc1.weight"]!.shape, [12, 8])
    assert.deepStrictEqual(timm!["head.weight"]!.shape, [3, 8])
    const layer = "vit.encoder.layer.1"
    const parts = ["query", "key", "value"].flatMap((n) => [...hf![`${layer}.attention.attention.${n}.weight`]!.data])
    assert.deepStrictEqual([...timm!["blocks.1.attn.qkv.weight"]!.data], parts)
    assert.deepStrictEqual(timm!["blocks.1.attn.proj.weight"], hf![`${layer}.attention.output.dense.weight`])
    // Row (head, depth), column embed of torch is [embed, head, depth] of ours.
    const query = values["blocks/attention/query"]!.data
    const torch = hf![`${layer}.attention.attention.query.weight`]!.data
    assert.strictEqual(torch[(1 * 4 + 2) * 8 + 5], query[((1 * 8 + 5) * 2 + 1) * 4 + 2])
    // A convolution's kernel [embed, channel, row, column] is [row, column, channel, embed] of ours.
    assert.strictEqual(
      timm!["patch_embed.proj.weight"]!.data[((3 * 2 + 1) * 4 + 2) * 4 + 1],
      values["patchEmbed/weight"]!.data[((2 * 4 + 1) * 2 + 1) * 8 + 3]
    )
  })

  it("what does not fit is named on both sides", () => {
    const c = tiny()
    const { params } = Vit.make(c)
    const source = Result.getOrThrow(NameTable.write(VitNames.timm(c), params, randomParameters(c)))
    const read = (changed: NameTable.Source, table = VitNames.timm(c)) =>
      Result.getOrThrow(Result.flip(NameTable.read(table, params, changed)))
    const { "norm.bias": bias, ...rest } = source
    assert.strictEqual(read(rest).problem, "MissingTensor")
    assert.strictEqual(read({ ...source, extra: bias! }).problem, "UnusedTensor")
    const wrong = read({ ...source, "head.weight": { dtype: "F32", shape: [4, 8], data: new Float32Array(32) } })
    assert.strictEqual(wrong.problem, "ShapeMismatch")
    assert.strictEqual(wrong.message, `"head.weight" is [4,8], head/weight [embed=8, classes=3] needs [3,8]`)
    const table = VitNames.timm(c)
    assert.strictEqual(read(source, { ...table, rules: table.rules.slice(1) }).problem, "UnfilledParameter")
    assert.strictEqual(
      read(source, { ...table, rules: [...table.rules, { ...table.rules[0]!, source: "other" }] }).problem,
      "FilledTwice"
    )
    assert.strictEqual(read(source, { ...table, rules: [...table.rules, table.rules[0]!] }).problem, "UsedTwice")
    const pooler = {
      ...Result.getOrThrow(NameTable.write(VitNames.huggingFace(c), params, randomParameters(c))),
      "vit.pooler.dense.weight": bias!
    }
    assert.isTrue(Result.isSuccess(NameTable.read(VitNames.huggingFace(c), params, pooler)))
  })
})

describe("position interpolation", () => {
  const grid = (side: number, f: (i: number) => number, width = 1): PositionInterpolation.GridValues => ({
    rows: side,
    cols: side,
    width,
    data: Float32Array.from({ length: side * side * width }, (_, i) => f(i))
  })
  const near = (found: PositionInterpolation.GridValues, expected: ReadonlyArray<number>, tolerance = 1e-5) => {
    assert.strictEqual(found.data.length, expected.length)
    expected.forEach((v, i) => assert.closeTo(found.data[i]!, v, tolerance))
  }
  const modes: ReadonlyArray<PositionInterpolation.Mode> = ["zoom", "bilinear", "bicubic", "bicubicAntialias"]

  it("the same object when the grid does not change; constants stay; channels are independent", () => {
    for (const mode of modes) {
      const same = grid(5, Math.sin)
      assert.strictEqual(PositionInterpolation.resize(same, { rows: 5, cols: 5 }, mode), same)
      near(
        PositionInterpolation.resize(
          grid(4, () => 3),
          { rows: 7, cols: 3 },
          mode
        ),
        Array.from({ length: 21 }, () => 3)
      )
      const two = PositionInterpolation.resize(grid(3, Math.cos, 2), { rows: 5, cols: 4 }, mode)
      const first = PositionInterpolation.resize(
        grid(3, (i) => Math.cos(2 * i)),
        { rows: 5, cols: 4 },
        mode
      )
      near(
        first,
        [...two.data].filter((_, i) => i % 2 === 0)
      )
    }
  })

  it("zoom equals scipy.ndimage.zoom 1.17, order 1", () => {
    const before = grid(3, (i) => i ** 1.5)
    near(
      PositionInterpolation.resize(before, { rows: 5, cols: 4 }, "zoom"),
      [
        0.0, 0.666667, 1.609476, 2.828427, 2.598076, 3.866025, 5.334795, 7.004384, 5.196152, 7.065384, 9.060113,
        11.18034, 9.946545, 12.155602, 14.474713, 16.903878, 14.696938, 17.245819, 19.889312, 22.627417
      ]
    )
    near(PositionInterpolation.resize(before, { rows: 2, cols: 2 }, "zoom"), [0.0, 2.828427, 14.696938, 22.627417])
  })

  it("bilinear equals the example of torch.nn.Upsample", () => {
    near(
      PositionInterpolation.resize(
        grid(2, (i) => i + 1),
        { rows: 4, cols: 4 },
        "bilinear"
      ),
      [1, 1.25, 1.75, 2, 1.5, 1.75, 2.25, 2.5, 2.5, 2.75, 3.25, 3.5, 3, 3.25, 3.75, 4]
    )
  })

  it("bicubic equals ONNX's example resize_upsample_scales_cubic", () => {
    const found = PositionInterpolation.resize(
      grid(4, (i) => i + 1),
      { rows: 8, cols: 8 },
      "bicubic"
    )
    const first = [0.47265625, 0.76953125, 1.24609375, 1.875, 2.28125, 2.91015625, 3.38671875, 3.68359375]
    const second = [1.66015625, 1.95703125, 2.43359375, 3.0625, 3.46875, 4.09765625, 4.57421875, 4.87109375]
    near({ rows: 2, cols: 8, width: 1, data: found.data.subarray(0, 16) }, [...first, ...second])
  })

  it("bicubicAntialias equals ONNX's with a = -0.5 and the outside excluded when enlarging", () => {
    const found = PositionInterpolation.resize(
      grid(4, (i) => i + 1),
      { rows: 8, cols: 8 },
      "bicubicAntialias"
    )
    const first = [0.55882353, 0.81494204, 1.35698249, 1.89705882, 2.39705882, 2.93713516, 3.47917561, 3.73529412]
    const second = [1.58329755, 1.83941606, 2.38145651, 2.92153285, 3.42153285, 3.96160918, 4.50364964, 4.75976814]
    near({ rows: 2, cols: 8, width: 1, data: found.data.subarray(0, 16) }, [...first, ...second])
  })

  it("bicubicAntialias equals Pillow's when shrinking, as in PyTorch's own test", () => {
    const found = PositionInterpolation.resize(
      grid(8, (i) => i),
      { rows: 2, cols: 2 },
      "bicubicAntialias"
    )
    near(found, [15.1205635, 18.760439, 44.23956, 47.879436], 1e-4)
  })
})

describe("from pre-training to fine-tuning", () => {
  const before = tiny({ classTokens: 2, head: { kind: "rosettaMlp", classes: 5, width: 6, bias: 0 } })
  const head = { kind: "linear", classes: 4, kernel: "zeros", bias: 0 } as const
  const after = { ...before, imageSize: { height: 16, width: 16 }, head }

  it("a zero head, resized positions, everything else the same arrays", () => {
    const values = randomParameters(before)
    const converted = Result.getOrThrow(Finetune.convert(values, before, after))
    for (const { path } of Module.leaves(Vit.make(after).params)) {
      if (path.startsWith("head/")) assert.isTrue(converted[path]!.data.every((v) => v === 0))
      else if (path !== "positions") assert.strictEqual(converted[path], values[path])
    }
    assert.isUndefined(converted["head/in/weight"])
    const positions = converted["positions"]!
    assert.strictEqual(positions.data.length, (2 + 16) * 8)
    assert.deepStrictEqual(positions.data.subarray(0, 16), values["positions"]!.data.subarray(0, 16))
    // Corners are aligned: the four corners keep their vectors.
    const corner = (x: Float32Array, i: number) => Array.from(x.subarray((2 + i) * 8, (3 + i) * 8))
    assert.deepStrictEqual(corner(positions.data, 15), corner(values["positions"]!.data, 3))
    assert.deepStrictEqual(corner(positions.data, 3), corner(values["positions"]!.data, 1))
  })

  it("at the same size positions are the same array", () => {
    const values = randomParameters(before)
    assert.strictEqual(
      Result.getOrThrow(Finetune.convert(values, before, { ...before, head }))["positions"],
      values["positions"]
    )
  })

  it("another width is refused, and so is a head that begins at random", () => {
    const values = randomParameters(before)
    const problem = (to: VitConfig.VitConfig) =>
      Result.getOrThrow(Result.flip(Finetune.convert(values, before, to))).message
    assert.include(problem({ ...before, head, mlp: 16 }), "blocks/mlp/in/weight")
    assert.include(problem({ ...before, head: { ...head, kernel: "normal" } }), "begins at random")
  })
})
