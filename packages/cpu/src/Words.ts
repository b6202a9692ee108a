/** Instructions before memory is placed: whole numbers, doubles, and views that become operands once their addresses are known. */
import type * as Plan from "@tessera/core/Plan"
import * as DType from "@tessera/core/DType"
import { dtypes } from "./opcodes.ts"

export type Word = number | { readonly double: number } | { readonly view: Plan.View | null }

export interface Instruction {
  readonly opcode: number
  readonly words: ReadonlyArray<Word>
}

export const double = (value: number): Word => ({ double: value })
/** Four words; absent operands are zeros. */
export const operand = (view: Plan.View | null): Word => ({ view })

export interface Address {
  readonly binding: number
  readonly offset: number
}

const sizeOf = (words: ReadonlyArray<Word>): number =>
  words.reduce<number>((n, w) => n + (typeof w === "object" && "view" in w ? 4 : 1), 0)

/** The plan as the library reads it: int64 words, low half first. */
export const encode = (
  instructions: ReadonlyArray<{ readonly instruction: Instruction; readonly equation: number }>,
  addressOf: (buffer: number) => Address
): BigInt64Array => {
  const total = instructions.reduce((n, { instruction }) => n + 3 + sizeOf(instruction.words), 0)
  const words = new BigInt64Array(total)
  const halves = new Int32Array(words.buffer)
  const doubles = new Float64Array(words.buffer)
  let at = 0
  const put = (value: number) => {
    halves[2 * at] = value | 0
    halves[2 * at + 1] = Math.floor(value / 2 ** 32)
    at++
  }
  for (const { equation, instruction } of instructions) {
    put(instruction.opcode)
    put(3 + sizeOf(instruction.words))
    put(equation)
    for (const w of instruction.words) {
      if (typeof w === "number") put(w)
      else if ("double" in w) doubles[at++] = w.double
      else if (w.view === null) for (let i = 0; i < 4; i++) put(0)
      else {
        const { binding, offset } = addressOf(w.view.buffer)
        put(binding)
        put(offset + w.view.offset * DType.bytesOf(w.view.dtype))
        put(dtypes[w.view.dtype])
        put(0)
      }
    }
  }
  return words
}
