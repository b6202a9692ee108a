/** Lines for people on standard output, diagnostics on standard error. */
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"

export const print = (text: string): Effect.Effect<void> => Effect.sync(() => void process.stdout.write(`${text}\n`))

export const note = (text: string): Effect.Effect<void> => Effect.sync(() => void process.stderr.write(`${text}\n`))

/** How this command is called here: by name when it is installed, through pnpm in a clone of the repository. */
export const command = import.meta.url.includes("/node_modules/") ? "npx tessera" : "npx --yes pnpm@12 tessera"

/** One JSON value on a line of its own. */
export const printJson = (value: unknown): Effect.Effect<void> => print(JSON.stringify(value))

const text = (message: unknown): string =>
  (Array.isArray(message) ? message : [message]).map((m) => (typeof m === "string" ? m : JSON.stringify(m))).join(" ")

/** Log lines go to standard error, so that results can be read by programs. */
export const logger = Logger.layer([
  Logger.make(({ logLevel, message }) => {
    process.stderr.write(`${logLevel === "Warn" ? "warning" : logLevel.toLowerCase()}: ${text(message)}\n`)
  })
])

/** `1 234 567` with commas. */
export const grouped = (n: number): string => n.toLocaleString("en-US")

/** Columns of text, the first to the left, the others to the right. */
export const table = (rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => (row[i] ?? "").length)))
  return rows
    .map((row) =>
      row
        .map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)))
        .join("  ")
        .trimEnd()
    )
    .join("\n")
}

export const percent = (share: number): string => `${(share * 100).toFixed(2)} %`
