/** Two trainings inside one HTTP server, followed by metrics and spans; one is interrupted, the other must not notice. */
import { assert, it } from "@effect/vitest"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as MetricsTracker from "@tessera/core/layers/MetricsTracker"
import { Tracker } from "@tessera/core/services/Tracker"
import * as CpuBackend from "@tessera/cpu/CpuBackend"
import * as NativeLibrary from "@tessera/cpu/NativeLibrary"
import { Augmenter } from "@tessera/data/Augmenter"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberMap from "effect/FiberMap"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Otlp from "effect/observability/Otlp"
import * as OtlpSerialization from "effect/observability/OtlpSerialization"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import * as Trainings from "./trainings.ts"

class Runs extends Context.Service<Runs, { readonly fibers: FiberMap.FiberMap<string, unknown, unknown> }>()(
  "test/Runs"
) {
  static readonly layer = Layer.effect(
    Runs,
    Effect.map(FiberMap.make<string>(), (fibers) => ({ fibers }))
  )
}

/** Ends a run and answers when it has ended. */
const stop = Effect.gen(function* () {
  const { fibers } = yield* Runs
  const { run } = yield* HttpRouter.params
  const fiber = FiberMap.getUnsafe(fibers, run ?? "")
  if (fiber._tag === "None") return HttpServerResponse.text("no such run", { status: 404 })
  yield* Fiber.interrupt(fiber.value)
  return HttpServerResponse.text("stopped")
})

const Server = HttpRouter.serve(
  Layer.mergeAll(HttpRouter.add("POST", "/stop/:run", stop), PrometheusMetrics.layerHttp()),
  { disableLogger: true, disableListenLog: true }
).pipe(Layer.provideMerge(NodeHttpServer.layer(() => createServer(), { port: 0, host: "127.0.0.1" })))

const Training = Layer.mergeAll(CpuBackend.layerWith({ threads: 2 }), Augmenter.layerNative, NodeServices.layer)

const sizes = {
  first: ["batchSize=48", "model.layers=3", "optimizer.learningRate=1e-3"],
  second: ["batchSize=32", "model.layers=2", "model.dropout=0.1"]
}

/** Native bytes in use and the losses of all steps. */
interface Record {
  readonly losses: Array<number>
  bytes: number
}

const train = (run: keyof typeof sizes, totalSteps: number, library: NativeLibrary.Library, record: Record) =>
  Trainings.recipe({
    name: "mnist",
    set: sizes[run],
    run,
    totalSteps,
    each: (report) =>
      Effect.gen(function* () {
        const tracker = yield* Tracker
        yield* tracker.report(report)
        record.losses.push(report.loss)
        record.bytes = library.memoryLive()
      })
  })

/** Accepts what OpenTelemetry sends. */
const collector = Effect.gen(function* () {
  const bodies: Array<{ readonly url: string; readonly body: string }> = []
  const server = createServer((request, response) => {
    let body = ""
    request.on("data", (data: Buffer) => (body += data.toString()))
    request.on("end", () => {
      bodies.push({ url: request.url!, body })
      response.writeHead(200, { "content-type": "application/json", connection: "close" }).end("{}")
    })
  })
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => void server.listen(0, "127.0.0.1", () => resume(Effect.void))),
    () => Effect.callback<void>((resume) => void server.close(() => resume(Effect.void)))
  )
  return { bodies, port: (server.address() as AddressInfo).port }
})

interface Span {
  readonly name: string
  readonly attributes: ReadonlyArray<{ readonly key: string; readonly value: { readonly stringValue?: string } }>
}

const spans = (bodies: ReadonlyArray<{ readonly url: string; readonly body: string }>): ReadonlyArray<Span> =>
  bodies
    .filter(({ url }) => url === "/v1/traces")
    .flatMap(({ body }) => JSON.parse(body).resourceSpans as ReadonlyArray<any>)
    .flatMap(({ scopeSpans }) => scopeSpans.flatMap((scope: any) => scope.spans))

const handles = () => process.getActiveResourcesInfo().filter((name) => name !== "PipeWrap" && name !== "MessagePort")

it.live(
  "an HTTP server runs two trainings, is followed, and ends one without touching the other",
  () =>
    Effect.gen(function* () {
      const library = yield* NativeLibrary.load()
      const bytesBefore = library.memoryLive()
      const alone: Record = { losses: [], bytes: 0 }
      const totalSteps = 60
      yield* train("second", totalSteps, library, alone).pipe(Effect.provide([Training, MetricsTracker.layer]))
      assert.strictEqual(alone.losses.length, totalSteps)
      assert.strictEqual(library.memoryLive(), bytesBefore, "a training that ended keeps no memory")
      const handlesBefore = handles().toSorted()

      const { bodies, port } = yield* collector
      const Telemetry = Otlp.layer({
        baseUrl: `http://127.0.0.1:${port}`,
        resource: { serviceName: "application" },
        tracerExportInterval: "200 millis"
      }).pipe(Layer.provide([OtlpSerialization.layerJson, FetchHttpClient.layer]))

      yield* Effect.gen(function* () {
        const { fibers } = yield* Runs
        const { address } = yield* HttpServer.HttpServer
        const url = `http://127.0.0.1:${"port" in address ? address.port : 0}`
        const ask = (method: string, path: string) =>
          Effect.promise(async () => {
            const response = await fetch(`${url}${path}`, { method, headers: { connection: "close" } })
            return { status: response.status, text: await response.text() }
          })
        const [first, second]: [Record, Record] = [
          { losses: [], bytes: 0 },
          { losses: [], bytes: 0 }
        ]
        let fibersOfFirst = 0
        const counting: Metric.FiberRuntimeMetricsService = {
          recordFiberStart: () => void fibersOfFirst++,
          recordFiberEnd: () => void fibersOfFirst--
        }
        const firstFiber = yield* FiberMap.run(
          fibers,
          "first",
          train("first", 1_000_000, library, first).pipe(Effect.provideService(Metric.FiberRuntimeMetrics, counting))
        )
        const ended = yield* Deferred.make<void>()
        const secondFiber = yield* FiberMap.run(
          fibers,
          "second",
          Effect.ensuring(train("second", totalSteps, library, second), Deferred.succeed(ended, undefined))
        )
        while (first.losses.length < 5 || second.losses.length < 5) yield* Effect.sleep("5 millis")
        assert.isAbove(fibersOfFirst, 0)

        const page = yield* ask("GET", "/metrics")
        for (const run of ["first", "second"])
          assert.match(page.text, new RegExp(`train_loss\\{.*run="${run}".*\\} \\d`))

        assert.deepStrictEqual(yield* ask("POST", "/stop/first"), { status: 200, text: "stopped" })
        assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(firstFiber)))
        const stoppedAfter = first.losses.length
        const secondAt = second.losses.length
        assert.isBelow(secondAt, totalSteps, "the second was still at work")
        assert.strictEqual(fibersOfFirst, 0, "fibers of the first")
        assert.strictEqual(library.memoryLive(), alone.bytes, "what the second alone needs")
        assert.strictEqual((yield* ask("POST", "/stop/first")).status, 404)

        yield* Fiber.join(secondFiber)
        assert.deepStrictEqual(second.losses, alone.losses, "bit by bit")
        assert.strictEqual(first.losses.length, stoppedAfter)
        assert.strictEqual(yield* FiberMap.size(fibers), 0)
      }).pipe(
        Effect.provide(
          Layer.mergeAll(Server, MetricsTracker.layer, Training).pipe(
            Layer.provideMerge(Runs.layer),
            Layer.provideMerge(Telemetry)
          )
        )
      )

      assert.strictEqual(library.memoryLive(), bytesBefore)
      const steps = spans(bodies).filter(({ name }) => name === "Trainer.step")
      const of = (run: string) =>
        steps.filter(({ attributes }) => attributes.some((a) => a.key === "run" && a.value.stringValue === run)).length
      assert.strictEqual(of("second"), totalSteps)
      assert.isAbove(of("first"), 4)
      assert.isTrue(bodies.some(({ url, body }) => url === "/v1/metrics" && body.includes("train_loss")))
      const left = handles()
        .toSorted()
        .filter((name) => name !== "TCPServerWrap" && name !== "TCPSocketWrap")
      assert.deepStrictEqual(left, handlesBefore, "timers and files of the trainings")
    }).pipe(Effect.scoped),
  120_000
)
