import { assert, describe, it } from "@effect/vitest"
import * as ConsoleTracker from "@tessera/core/layers/ConsoleTracker"
import * as MetricsTracker from "@tessera/core/layers/MetricsTracker"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Otlp from "effect/observability/Otlp"
import * as OtlpSerialization from "effect/observability/OtlpSerialization"
import * as Queue from "effect/Queue"
import * as Sink from "effect/Sink"
import * as Stdio from "effect/Stdio"
import * as Terminal from "effect/Terminal"
import { TestClock } from "effect/testing"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { evaluationReport, stepReport, withTracker } from "./reports.ts"

/** A terminal of so many columns, or a pipe, that remembers what was written. */
const screen = (columns: number | undefined) => {
  const written: Array<string> = []
  const layer = Layer.mergeAll(
    Stdio.layerTest({
      stdoutIsTerminal: Effect.succeed(columns !== undefined),
      stdout: () => Sink.forEach((text: string | Uint8Array) => Effect.sync(() => written.push(String(text))))
    }),
    Layer.succeed(
      Terminal.Terminal,
      Terminal.make({
        columns: Effect.succeed(columns ?? 0),
        rows: Effect.succeed(24),
        size: Effect.flatMap(Queue.unbounded<Terminal.Size>(), (queue) => Effect.succeed(queue as never)),
        readInput: Effect.die("unused"),
        readLine: Effect.die("unused"),
        display: (text) => Effect.sync(() => void written.push(text))
      })
    )
  )
  return { written, layer }
}

// oxlint-disable-next-line no-control-regex
const plain = (text: string) => text.replaceAll(/\u001b\[[0-9;]*[mK]/g, "")

const run = (columns: number | undefined, env: Record<string, string> = {}) => {
  const { written, layer } = screen(columns)
  const tracker = ConsoleTracker.layer().pipe(
    Layer.provide(layer),
    Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown(env)))
  )
  return Effect.as(
    withTracker(tracker, (to) =>
      Effect.gen(function* () {
        for (let step = 1; step <= 1000; step++) {
          yield* to.report(stepReport(step, { skippedSamples: 3, loss: step === 500 ? NaN : 2.3 / step }))
          if (step === 600) yield* to.evaluation(evaluationReport(step))
          if (step === 700)
            yield* to.event({ run: "r", step, name: "checkpoint", message: `saved\n${"x".repeat(300)}` })
          yield* TestClock.adjust("20 millis")
        }
      })
    ),
    written
  )
}

describe("the console", () => {
  it.effect("rewrites one line on a terminal", () =>
    Effect.gen(function* () {
      for (const columns of [40, 80, 100, 300]) {
        const written = yield* run(columns)
        const lines = written
          .join("")
          .split(/[\r\n]+/)
          .map(plain)
        assert.isTrue(
          lines.every(
            (line) =>
              line.length <= Math.min(120, Math.max(columns, 60)) ||
              line.startsWith("validation") ||
              line.startsWith("step 700")
          )
        )
        assert.isTrue(lines.every((line) => line.length <= 120))
        assert.isAbove(written.filter((text) => text.startsWith("\r")).length, 150)
        assert.match(lines.at(-2)!, /step 1000\/1000/)
        assert.isTrue(written.at(-1)!.endsWith("\n"))
      }
      const text = plain((yield* run(119)).join(""))
      assert.match(text, /loss .*acc .*left .*img\/s .*epoch .*lr 3\.0e-4/)
      assert.include(text, "validation at step 600  loss 0.2500  acc 97.2%  topFive 0.9990  10000 samples in 4s\n")
    })
  )

  it.effect("writes plain lines into a pipe, one in five seconds", () =>
    Effect.gen(function* () {
      const written = yield* run(undefined)
      assert.strictEqual(written.filter((text) => text.startsWith("step") && text.includes("loss")).length, 5)
      assert.isTrue(
        written.every(
          (text) => text.endsWith("\n") && text.length <= 121 && !text.includes("\r") && !text.includes("\u001b")
        )
      )
      assert.match(
        written[0]!,
        /^step {4}1\/1000 {2}loss 2\.300 {2}acc 0\.1% {2}left 4m 10s {2}256\.0 img\/s {2}epoch 0\.01 {2}lr 3\.0e-4 {2}data wait 20% {2}skipped 3\n$/
      )
    })
  )

  it.effect("has no colour where NO_COLOR is set", () =>
    Effect.gen(function* () {
      const colour = (all: ReadonlyArray<string>) => all.join("").includes("\u001b[36m")
      assert.isTrue(colour(yield* run(100)))
      assert.isFalse(colour(yield* run(100, { NO_COLOR: "1" })))
    })
  )
})

describe("metrics", () => {
  it.effect("are labelled with the run", () =>
    Effect.gen(function* () {
      yield* withTracker(MetricsTracker.layer, (tracker) =>
        Effect.all([
          tracker.report(stepReport(1)),
          tracker.report(stepReport(2)),
          tracker.evaluation(evaluationReport(2))
        ])
      )
      const snapshot = yield* Metric.snapshot
      const find = (id: string) => snapshot.find((one) => one.id === id && one.attributes?.["run"] === "vit-mnist")
      assert.deepInclude(find("train_loss")?.state, { value: 2.3 / Math.SQRT2 })
      assert.deepInclude(find("train_steps")?.state, { count: 2 })
      assert.deepInclude(find("train_images_per_second")?.state, { value: 256 })
      assert.deepInclude(find("eval_accuracy")?.state, { value: 0.9721 })
    })
  )

  it.live("reach an OpenTelemetry collector, with spans", () =>
    Effect.gen(function* () {
      const bodies = new Map<string, string>()
      const server = createServer((request, response) => {
        let body = ""
        request.on("data", (data: Buffer) => (body += data.toString()))
        request.on("end", () => {
          bodies.set(request.url!, (bodies.get(request.url!) ?? "") + body)
          response.writeHead(200, { "content-type": "application/json" }).end("{}")
        })
      })
      yield* Effect.acquireRelease(
        Effect.callback<void>((resume) => void server.listen(0, "127.0.0.1", () => resume(Effect.void))),
        () => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void)))
      )
      const { port } = server.address() as AddressInfo
      const telemetry = Otlp.layer({ baseUrl: `http://127.0.0.1:${port}`, resource: { serviceName: "tessera" } }).pipe(
        Layer.provide([OtlpSerialization.layerJson, FetchHttpClient.layer])
      )
      yield* withTracker(MetricsTracker.layer, (tracker) =>
        tracker.report(stepReport(1, { run: "telemetry" })).pipe(Effect.withSpan("train.step"))
      ).pipe(Effect.provide(telemetry))
      assert.include(bodies.get("/v1/metrics") ?? "", `"train_loss"`)
      assert.include(bodies.get("/v1/metrics") ?? "", `"telemetry"`)
      assert.include(bodies.get("/v1/traces") ?? "", `"train.step"`)
    })
  )
})
