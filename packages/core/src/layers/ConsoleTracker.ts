/** The run on the terminal: one line that is rewritten, or, where there is none to rewrite, a line every few seconds. */
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import * as Semaphore from "effect/Semaphore"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as Terminal from "effect/Terminal"
import type { EvaluationReport, StepReport, TrackerEvent } from "../services/Tracker.ts"
import { throughput, Tracker } from "../services/Tracker.ts"
import { warnOnce } from "./Trackers.ts"

/** No line is longer, however wide the terminal is. */
export const maxColumns = 120

export interface ConsoleOptions {
  /** Seconds between two lines where the output is no terminal; 5 by default. */
  readonly everySeconds?: number
  /** Forces colours or their absence; by default they appear on a terminal unless NO_COLOR is set. */
  readonly color?: boolean
}

/** `1h 02m`, `3m 20s`, `12s`. */
export const duration = (seconds: number): string => {
  if (!Number.isFinite(seconds)) return "?"
  const whole = Math.max(0, Math.round(seconds))
  const two = (n: number) => String(n).padStart(2, "0")
  if (whole >= 86_400) return `${Math.floor(whole / 86_400)}d ${two(Math.floor((whole % 86_400) / 3600))}h`
  if (whole >= 3600) return `${Math.floor(whole / 3600)}h ${two(Math.floor((whole % 3600) / 60))}m`
  return whole >= 60 ? `${Math.floor(whole / 60)}m ${two(whole % 60)}s` : `${whole}s`
}

/** Four digits that matter: `2.303`, `0.01234`, `1.2e-7`. */
export const shortNumber = (value: number): string => {
  const size = Math.abs(value)
  if (!Number.isFinite(value) || value === 0) return String(value)
  if (size >= 10_000 || size < 1e-3) return value.toExponential(size >= 10_000 ? 2 : 1).replace("e+", "e")
  return size >= 1000 ? value.toFixed(0) : value.toPrecision(4)
}

const percent = (share: number) => `${(share * 100).toFixed(1)}%`

/** What the line averages over: recent speed and waiting, so that one slow step does not make it jump. */
export interface Pace {
  /** Seconds per step. */
  readonly seconds: number
  readonly dataSeconds: number
  readonly samples: number
}

/** The pace after another step: a moving average with the weight of about 20 steps. */
export const nextPace = (before: Pace | undefined, report: StepReport): Pace => {
  if (before === undefined) return report
  const mix = (a: number, b: number) => a + (b - a) * 0.05
  return {
    seconds: mix(before.seconds, report.seconds),
    dataSeconds: mix(before.dataSeconds, report.dataSeconds),
    samples: mix(before.samples, report.samples)
  }
}

const barColumns = 16

const bar = (share: number): string => {
  const eighths = Math.round(Math.min(1, Math.max(0, share)) * barColumns * 8)
  const full = "█".repeat(Math.floor(eighths / 8))
  const part = eighths % 8 === 0 ? "" : " ▏▎▍▌▋▊▉"[eighths % 8]!
  return (full + part).padEnd(barColumns, "·")
}

/** The fields of a step, the most important first: those that do not fit are left out from the end. */
export const stepFields = (report: StepReport, pace: Pace): ReadonlyArray<string> => [
  `step ${String(report.step).padStart(String(report.totalSteps).length)}/${report.totalSteps}`,
  `loss ${shortNumber(report.loss)}`,
  ...(report.accuracy === undefined ? [] : [`acc ${percent(report.accuracy)}`]),
  `left ${duration((report.totalSteps - report.step) * pace.seconds)}`,
  `${shortNumber(throughput(pace))} img/s`,
  `epoch ${report.epoch.toFixed(2)}`,
  `lr ${shortNumber(report.learningRate)}`,
  `data wait ${pace.seconds > 0 ? Math.round((pace.dataSeconds / pace.seconds) * 100) : 0}%`,
  ...(report.skippedSamples === 0 ? [] : [`skipped ${report.skippedSamples}`])
]

const separator = "  "

/** As many fields as fit into so many columns, joined. */
export const fit = (fields: ReadonlyArray<string>, columns: number): string => {
  let line = fields[0] ?? ""
  for (const field of fields.slice(1)) {
    if (line.length + separator.length + field.length > columns) break
    line += separator + field
  }
  return line.slice(0, columns)
}

const evaluationText = (report: EvaluationReport): string =>
  fit(
    [
      `${report.name} at step ${report.step}`,
      ...(report.loss === undefined ? [] : [`loss ${shortNumber(report.loss)}`]),
      ...(report.accuracy === undefined ? [] : [`acc ${percent(report.accuracy)}`]),
      ...Object.entries(report.metrics ?? {}).map(([name, value]) => `${name} ${shortNumber(value)}`),
      `${report.samples} samples in ${duration(report.seconds)}`
    ],
    maxColumns
  )

const eventText = (event: TrackerEvent): string =>
  `step ${event.step}  ${event.name}: ${event.message}`.replaceAll(/\s*[\r\n]+\s*/g, " ").slice(0, maxColumns)

const make = Effect.fnUntraced(function* (options: ConsoleOptions) {
  const stdio = yield* Stdio.Stdio
  const terminal = yield* Terminal.Terminal
  const live = yield* stdio.stdoutIsTerminal
  const noColor =
    (yield* Config.String("NO_COLOR").pipe(
      Config.withDefault(""),
      Effect.orElseSucceed(() => "")
    )) !== ""
  const color = options.color ?? (live && !noColor)
  const paint = (code: number, text: string) => (color ? `\u001b[${code}m${text}\u001b[0m` : text)
  const guarded = yield* warnOnce("the progress line")
  const turn = yield* Semaphore.make(1)
  const pace = yield* Ref.make<Pace | undefined>(undefined)
  const shown = yield* Ref.make({ at: -Infinity, open: false })
  const everyMillis = live ? 100 : (options.everySeconds ?? 5) * 1000
  const put = (text: string) => Stream.run(Stream.make(text), stdio.stdout({ endOnDone: false }))
  const clear = live ? "\r\u001b[K" : ""

  /** Writes a line that stays, above the one that is rewritten. */
  const line = (text: string) =>
    Effect.gen(function* () {
      yield* Ref.update(shown, ({ at }) => ({ at, open: false }))
      yield* put(`${clear}${text}\n`)
    }).pipe(turn.withPermit, guarded)

  const report = Effect.fnUntraced(function* (step: StepReport) {
    const next = yield* Ref.updateAndGet(pace, (before) => nextPace(before, step))
    const now = yield* Clock.currentTimeMillis
    const last = step.step >= step.totalSteps
    if (now - (yield* Ref.get(shown)).at < everyMillis && !last) return
    const fields = stepFields(step, next!)
    if (!live) {
      yield* Ref.set(shown, { at: now, open: false })
      return yield* put(`${fit(fields, maxColumns)}\n`)
    }
    const width = yield* terminal.columns
    const columns = Math.min(maxColumns, width === 0 ? maxColumns : width - 1)
    const share = step.totalSteps > 0 ? step.step / step.totalSteps : 0
    const withBar = columns >= 80
    const text = fit(fields, withBar ? columns - barColumns - separator.length : columns)
    yield* Ref.set(shown, { at: now, open: !last })
    yield* put(`${clear}${withBar ? paint(36, bar(share)) + separator : ""}${text}${last ? "\n" : ""}`)
  })

  yield* Effect.addFinalizer(() =>
    Effect.flatMap(Ref.get(shown), ({ open }) => (open ? guarded(put("\n")) : Effect.void))
  )
  return Tracker.of({
    report: (step) => report(step).pipe(turn.withPermit, guarded),
    evaluation: (evaluation) => line(paint(32, evaluationText(evaluation))),
    event: (event) => line(paint(33, eventText(event)))
  })
})

/** Shows progress on standard output. */
export const layer = (options: ConsoleOptions = {}): Layer.Layer<Tracker, never, Stdio.Stdio | Terminal.Terminal> =>
  Layer.effect(Tracker, make(options))
