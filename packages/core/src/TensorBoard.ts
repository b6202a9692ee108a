/**
 * TensorBoard's event files: records framed with lengths and checksums, each holding one `Event` message.
 *
 * @source github.com/tensorflow/tensorflow: core/lib/io/record_writer.cc, core/util/event.proto, core/framework/summary.proto
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"

/** A file that ends within a record, or whose checksum is wrong. */
export class TensorBoardError extends Schema.TaggedError<TensorBoardError>()("TensorBoardError", {
  problem: Schema.Literals(["Truncated", "ChecksumMismatch", "BadMessage"]),
  /** Where the record begins, in bytes. */
  offset: Schema.Number,
  detail: Schema.String
}) {
  override get message() {
    return `event file, record at byte ${this.offset}: ${this.detail}`
  }
}

/** One event. `wallTime` is in seconds since 1970; `start` tells TensorBoard to forget later steps of older files. */
export interface Event {
  readonly wallTime: number
  readonly step: number
  readonly fileVersion?: string
  readonly scalars?: ReadonlyArray<{ readonly tag: string; readonly value: number }>
  readonly start?: boolean
}

/** What the first event of every file says. */
export const fileVersion = "brain.Event:2"

const table = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n
  for (let bit = 0; bit < 8; bit++) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1
  return c >>> 0
})

/** CRC-32C (Castagnoli). */
export const crc32c = (bytes: Uint8Array): number => {
  let c = 0xffffffff
  for (const byte of bytes) c = table[(c ^ byte) & 255]! ^ (c >>> 8)
  return (c ^ 0xffffffff) >>> 0
}

/** The checksum as it is stored: rotated and shifted, so that data holding checksums has another one. */
export const maskedCrc32c = (bytes: Uint8Array): number => {
  const crc = crc32c(bytes)
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0
}

const concat = (parts: ReadonlyArray<Uint8Array>): Uint8Array => {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0))
  let at = 0
  for (const part of parts) {
    out.set(part, at)
    at += part.byteLength
  }
  return out
}

/** Frames one record: length, its checksum, the bytes, their checksum. */
export const encodeRecord = (data: Uint8Array): Uint8Array => {
  const out = new Uint8Array(16 + data.byteLength)
  const view = new DataView(out.buffer)
  view.setBigUint64(0, BigInt(data.byteLength), true)
  view.setUint32(8, maskedCrc32c(out.subarray(0, 8)), true)
  out.set(data, 12)
  view.setUint32(12 + data.byteLength, maskedCrc32c(data), true)
  return out
}

/** The records of a file. The failure names the first bad one; `records` holds those before it. */
export const decodeRecords = (
  bytes: Uint8Array
): { readonly records: ReadonlyArray<Uint8Array>; readonly failure?: TensorBoardError } => {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const records: Array<Uint8Array> = []
  let offset = 0
  const stop = (problem: TensorBoardError["problem"], detail: string) => ({
    records,
    failure: new TensorBoardError({ problem, offset, detail })
  })
  while (offset < bytes.byteLength) {
    if (bytes.byteLength - offset < 12) return stop("Truncated", "its length is cut off")
    if (view.getUint32(offset + 8, true) !== maskedCrc32c(bytes.subarray(offset, offset + 8))) {
      return stop("ChecksumMismatch", "the checksum of its length is wrong")
    }
    const length = Number(view.getBigUint64(offset, true))
    if (bytes.byteLength - offset < 16 + length) return stop("Truncated", `${length} bytes were announced`)
    const data = bytes.subarray(offset + 12, offset + 12 + length)
    if (view.getUint32(offset + 12 + length, true) !== maskedCrc32c(data)) {
      return stop("ChecksumMismatch", "the checksum of its data is wrong")
    }
    records.push(data)
    offset += 16 + length
  }
  return { records }
}

const varint = (value: bigint): Uint8Array => {
  const out: Array<number> = []
  let rest = BigInt.asUintN(64, value)
  do {
    out.push(Number(rest & 127n) | (rest > 127n ? 128 : 0))
    rest >>= 7n
  } while (rest > 0n)
  return Uint8Array.from(out)
}

const tagOf = (field: number, wire: number) => Uint8Array.of((field << 3) | wire)

const lengthField = (field: number, data: Uint8Array) =>
  concat([tagOf(field, 2), varint(BigInt(data.byteLength)), data])

const textField = (field: number, text: string) => lengthField(field, new TextEncoder().encode(text))

const doubleField = (field: number, value: number) => {
  const out = new Uint8Array(9)
  out[0] = (field << 3) | 1
  new DataView(out.buffer).setFloat64(1, value, true)
  return out
}

const floatField = (field: number, value: number) => {
  const out = new Uint8Array(5)
  out[0] = (field << 3) | 5
  new DataView(out.buffer).setFloat32(1, value, true)
  return out
}

/** An event as a protocol buffer. Values are stored as 32-bit floats. */
export const encodeEvent = (event: Event): Uint8Array =>
  concat([
    doubleField(1, event.wallTime),
    ...(event.step === 0 ? [] : [tagOf(2, 0), varint(BigInt(event.step))]),
    ...(event.fileVersion === undefined ? [] : [textField(3, event.fileVersion)]),
    ...(event.scalars === undefined
      ? []
      : [
          lengthField(
            5,
            concat(
              event.scalars.map(({ tag, value }) => lengthField(1, concat([textField(1, tag), floatField(2, value)])))
            )
          )
        ]),
    ...(event.start === true ? [lengthField(7, concat([tagOf(1, 0), varint(1n)]))] : [])
  ])

type Field = { readonly field: number; readonly value: bigint | Uint8Array }

/** Splits a message into its fields; fixed-width values stay bytes. */
const fieldsOf = (bytes: Uint8Array): ReadonlyArray<Field> | undefined => {
  const out: Array<Field> = []
  let at = 0
  const readVarint = (): bigint | undefined => {
    let value = 0n
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const byte = bytes[at++]
      if (byte === undefined) return undefined
      value |= BigInt(byte & 127) << shift
      if (byte < 128) return BigInt.asUintN(64, value)
    }
    return undefined
  }
  while (at < bytes.byteLength) {
    const key = readVarint()
    if (key === undefined) return undefined
    const wire = Number(key & 7n)
    const number = wire === 0 || wire === 2 ? readVarint() : undefined
    const size = wire === 1 ? 8 : wire === 5 ? 4 : wire === 2 ? Number(number ?? -1n) : 0
    if ((wire === 0 && number === undefined) || size < 0 || ![0, 1, 2, 5].includes(wire)) return undefined
    if (at + size > bytes.byteLength) return undefined
    out.push({ field: Number(key >> 3n), value: wire === 0 ? number! : bytes.subarray(at, at + size) })
    at += size
  }
  return out
}

const dataOf = (fields: ReadonlyArray<Field>, field: number, size?: number): ReadonlyArray<Uint8Array> =>
  fields.flatMap((one) =>
    one.field === field && one.value instanceof Uint8Array && (size === undefined || one.value.byteLength === size)
      ? [one.value]
      : []
  )

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)

/** The event of a record. What this codec does not know (images, histograms) is passed over. */
export const decodeEvent = (bytes: Uint8Array): Result.Result<Event, TensorBoardError> => {
  const bad = Result.fail(new TensorBoardError({ problem: "BadMessage", offset: 0, detail: "it is no event" }))
  const fields = fieldsOf(bytes)
  if (fields === undefined) return bad
  const text = new TextDecoder()
  const time = dataOf(fields, 1, 8)[0]
  const step = fields.find(({ field }) => field === 2)?.value ?? 0n
  const version = dataOf(fields, 3)[0]
  const scalars: Array<{ tag: string; value: number }> = []
  for (const summary of dataOf(fields, 5)) {
    for (const value of dataOf(fieldsOf(summary) ?? [], 1)) {
      const parts = fieldsOf(value) ?? []
      const tag = dataOf(parts, 1)[0]
      const simple = dataOf(parts, 2, 4)[0]
      if (tag !== undefined && simple !== undefined) {
        scalars.push({ tag: text.decode(tag), value: viewOf(simple).getFloat32(0, true) })
      }
    }
  }
  if (typeof step !== "bigint") return bad
  const start = dataOf(fields, 7).some((log) => fieldsOf(log)?.some(({ field, value }) => field === 1 && value === 1n))
  return Result.succeed({
    wallTime: time === undefined ? 0 : viewOf(time).getFloat64(0, true),
    step: Number(BigInt.asIntN(64, step)),
    ...(version === undefined ? {} : { fileVersion: text.decode(version) }),
    ...(scalars.length === 0 ? {} : { scalars }),
    ...(start ? { start } : {})
  })
}
