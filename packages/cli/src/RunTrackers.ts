/** Where a run on the command line reports to: the terminal or JSON lines, metrics.jsonl, TensorBoard events, metrics. */
import * as ConsoleTracker from "@tessera/core/layers/ConsoleTracker"
import * as JsonlTracker from "@tessera/core/layers/JsonlTracker"
import * as MetricsTracker from "@tessera/core/layers/MetricsTracker"
import * as TensorBoardTracker from "@tessera/core/layers/TensorBoardTracker"
import * as Trackers from "@tessera/core/layers/Trackers"
import type { TrackerError } from "@tessera/core/services/Tracker"
import { Tracker } from "@tessera/core/services/Tracker"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import type * as Path from "effect/Path"
import type * as Stdio from "effect/Stdio"
import type * as Terminal from "effect/Terminal"
import type { Paths } from "./RunFolder.ts"

/** Every report as a line of JSON on standard output, as metrics.jsonl has it. */
const jsonLines = Layer.succeed(
  Tracker,
  Tracker.of({
    report: (report) => jsonLine({ kind: "step", ...report }),
    evaluation: (report) => jsonLine({ kind: "evaluation", ...report }),
    event: (event) => jsonLine({ kind: "event", ...event })
  })
)

type Timeless<L> = L extends unknown ? Omit<L, "time"> : never

const jsonLine = (line: Timeless<JsonlTracker.Line>) =>
  Effect.map(
    Clock.currentTimeMillis,
    (time) => void process.stdout.write(JsonlTracker.encodeLine({ ...line, time } as JsonlTracker.Line))
  )

export const layer = (options: { readonly paths: Paths; readonly json: boolean; readonly resumedStep: number }) => {
  const { json, paths, resumedStep } = options
  const resumed = resumedStep === 0 ? {} : { resumedStep }
  type Any = Layer.Layer<Tracker, TrackerError, FileSystem.FileSystem | Path.Path | Stdio.Stdio | Terminal.Terminal>
  const layers: ReadonlyArray<Any> = [
    json ? jsonLines : ConsoleTracker.layer(),
    JsonlTracker.layer({ file: paths.metrics, ...resumed }),
    TensorBoardTracker.layer({ folder: paths.events, ...resumed }),
    MetricsTracker.layer
  ]
  return Trackers.combine(layers)
}
