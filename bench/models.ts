/** One training step of a vision transformer, timed on the native backend. */
import * as Axis from "@tessera/core/Axis"
import * as Module from "@tessera/core/Module"
import * as Optimizer from "@tessera/core/Optimizer"
import * as AdamW from "@tessera/core/optimizers/adamw"
import * as Precision from "@tessera/core/Precision"
import type { Buffer, EquationProfile } from "@tessera/core/services/Backend"
import { Backend } from "@tessera/core/services/Backend"
import * as Step from "@tessera/core/Step"
import * as T from "@tessera/core/Tensor"
import * as Vit from "@tessera/models/Vit"
import * as VitConfig from "@tessera/models/VitConfig"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"

export interface Case {
  /** Names of the peer's script. */
  readonly model: "vit_b16" | "vit_ti16" | "vit_s32"
  readonly batch: number
  readonly dtype: "fp32" | "bf16"
}

const configs = {
  vit_b16: {
    imageSize: { height: 224, width: 224 },
    patch: 16,
    hidden: 768,
    mlp: 3072,
    heads: 12,
    layers: 12,
    classes: 1000
  },
  vit_ti16: {
    imageSize: { height: 224, width: 224 },
    patch: 16,
    hidden: 192,
    mlp: 768,
    heads: 3,
    layers: 12,
    classes: 1000
  },
  vit_s32: { imageSize: { height: 32, width: 32 }, patch: 4, hidden: 192, mlp: 768, heads: 3, layers: 6, classes: 10 }
} as const

const configOf = (model: Case["model"]): VitConfig.VitConfig => {
  const { classes, ...sizes } = configs[model]
  return VitConfig.make({ ...sizes, dropout: 0, head: { kind: "linear", classes, kernel: "normal", bias: 0 } as never })
}

export const stepOf = ({ batch, dtype, model }: Case) => {
  const config = configOf(model)
  const vit = Vit.classifier(config)
  const { height, width } = config.imageSize
  return Step.make({
    params: vit.params,
    batch: {
      image: { axes: Axis.list({ batch, row: height, col: width, channel: 3 }), dtype: "f32" },
      label: { axes: Axis.list({ batch }), dtype: "i32" },
      examples: { axes: Axis.list({ batch }), dtype: "u32" }
    } as const,
    loss: (params, b, call) => {
      const logits = vit.apply(params, b.image as Vit.Image, call)
      const each = T.softmaxCrossEntropy(logits, b.label as T.Tensor<"batch", "int">, { classes: "classes" })
      return { total: T.sum(each, "batch"), weight: T.constant(batch) }
    },
    optimizer: Optimizer.make(AdamW.adamw(), { decay: 0.05 }),
    precision: dtype === "bf16" ? Precision.bf16 : Precision.f32
  })
}

export interface Timing {
  readonly traceSeconds: number
  readonly compileSeconds: number
  readonly stepSeconds: ReadonlyArray<number>
  readonly launches: number
  readonly arenaBytes: number
  /** Contractions, 2 a multiply-add, forward and backward, by the usual count (three forward passes). */
  readonly flopsPerImage: number
  readonly profile: ReadonlyArray<EquationProfile>
  readonly loss: number
}

/** Random pictures, `warmup` steps, then `steps` timed ones. */
export const time = (c: Case, steps: number, warmup = 1): Effect.Effect<Timing, unknown, Backend> =>
  Effect.scoped(
    Effect.gen(function* () {
      const backend = yield* Backend
      const begin = performance.now()
      const step = Result.getOrThrow(stepOf(c))
      const traced = performance.now()
      const executable = yield* backend.compile(step.program, { donated: step.donated })
      const compiled = performance.now()
      const parameterCount = Module.leaves(Vit.classifier(configOf(c.model)).params).length
      const buffers: Array<Buffer> = []
      const inputs = step.program.inputs
      for (const [i, x] of inputs.entries()) {
        const buffer = yield* backend.allocate(x.type)
        const bytes = new Uint8Array(buffer.bytes)
        const count = Axis.count(x.type.axes)
        if (x.type.dtype === "f32" && (i < parameterCount || Axis.has(x.type.axes, "row"))) {
          const values = new Float32Array(bytes.buffer)
          const size = i < parameterCount ? 0.04 : 2
          for (let k = 0; k < count; k++) values[k] = (Math.random() - 0.5) * size
        }
        yield* backend.write(buffer, bytes)
        buffers.push(buffer)
      }
      const scalars = inputs.length - 4
      const write = (i: number, value: number) =>
        backend.write(buffers[i]!, new Uint8Array(Float32Array.of(value).buffer))
      yield* write(scalars, 1e-3)
      yield* write(scalars + 3, 1)
      const seconds: Array<number> = []
      let loss = NaN
      for (let k = 1; k <= warmup + steps; k++) {
        yield* write(scalars + 1, k)
        const from = performance.now()
        const outputs = yield* executable.run(buffers)
        if (k > warmup) seconds.push((performance.now() - from) / 1000)
        const bytes = yield* backend.read(outputs[step.donated.length]!)
        loss = new Float32Array(bytes.buffer)[0]!
      }
      const profile = yield* executable.profile(buffers)
      return {
        traceSeconds: (traced - begin) / 1000,
        compileSeconds: (compiled - traced) / 1000,
        stepSeconds: seconds,
        launches: executable.launches,
        arenaBytes: executable.arenaBytes,
        flopsPerImage: 3 * Vit.forwardFlops(configOf(c.model)),
        profile,
        loss
      }
    })
  )

/** Share of the step by kind of kernel, largest first. */
export const byKernel = (
  profile: ReadonlyArray<EquationProfile>
): ReadonlyArray<readonly [name: string, milliseconds: number]> => {
  const total = new Map<string, number>()
  for (const { equation, nanoseconds } of profile) {
    const { name } = equation.primitive
    const inside =
      name === "fused"
        ? equation.params.body.equations.map((e: { primitive: { name: string } }) => e.primitive.name).join("+")
        : ""
    const shape = equation.outputs.length > 0 ? Axis.print(equation.outputs[0]!.type.axes) : ""
    const key = `${name}${inside === "" ? "" : ` ${inside.slice(0, 70)}`} ${equation.outputs[0]?.type.dtype ?? ""}${shape}`
    total.set(key, (total.get(key) ?? 0) + nanoseconds / 1e6)
  }
  return [...total].sort((a, b) => b[1] - a[1])
}
