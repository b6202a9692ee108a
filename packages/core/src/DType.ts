/** Storage types of tensor elements, their kinds, sizes and rounding. */
export type DType = "f32" | "bf16" | "f16" | "i32" | "u32" | "u8" | "bool"

/** What arithmetic a storage type belongs to; the second type parameter of `Tensor`. */
export type Kind = "float" | "int" | "bool"

export const all: ReadonlyArray<DType> = ["f32", "bf16", "f16", "i32", "u32", "u8", "bool"]

export const kindOf = (dtype: DType): Kind =>
  dtype === "bool" ? "bool" : dtype === "f32" || dtype === "bf16" || dtype === "f16" ? "float" : "int"

/** Bytes of one stored element. */
export const bytesOf = (dtype: DType): number =>
  dtype === "f32" || dtype === "i32" || dtype === "u32" ? 4 : dtype === "bf16" || dtype === "f16" ? 2 : 1

/** Unit round-off of a float type: the largest relative error of one rounding. */
export const epsilonOf = (dtype: DType): number => (dtype === "f32" ? 2 ** -24 : dtype === "f16" ? 2 ** -11 : 2 ** -8)

const word = new DataView(new ArrayBuffer(8))

/** Bits of the bfloat16 nearest to `value` (ties to even; a NaN stays a quiet NaN). */
export const toBf16Bits = (value: number): number => {
  const single = Math.fround(value)
  word.setFloat32(0, single)
  const bits = word.getUint32(0)
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40
  const rounded = ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff
  // Rounding twice (to f32, then to bf16) goes wrong only at an exact tie that the first rounding made.
  if ((bits & 0xffff) !== 0x8000 || single === value) return rounded
  const down = bits >>> 16
  return Math.abs(value) < Math.abs(single) ? down : down + 1
}

export const fromBf16Bits = (bits: number): number => {
  word.setUint32(0, (bits << 16) >>> 0)
  return word.getFloat32(0)
}

/** Bits of the IEEE half nearest to `value` (ties to even, overflow to infinity). */
export const toF16Bits = (value: number): number => {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0
  if (Number.isNaN(value)) return 0x7e00
  const size = Math.abs(value)
  if (size === Infinity) return sign | 0x7c00
  if (size < 2 ** -14) return sign | tiesToEven(size * 2 ** 24)
  const exponent = Math.floor(Math.log2(size))
  const scaled = size / 2 ** exponent
  const adjusted = scaled >= 2 ? exponent + 1 : scaled < 1 ? exponent - 1 : exponent
  const mantissa = tiesToEven((size / 2 ** adjusted - 1) * 1024)
  const bits = ((adjusted + 15) << 10) + mantissa
  return sign | (bits >= 0x7c00 ? 0x7c00 : bits)
}

export const fromF16Bits = (bits: number): number => {
  const sign = bits & 0x8000 ? -1 : 1
  const exponent = (bits >>> 10) & 31
  const mantissa = bits & 1023
  if (exponent === 31) return mantissa === 0 ? sign * Infinity : NaN
  return exponent === 0 ? sign * mantissa * 2 ** -24 : sign * (1 + mantissa / 1024) * 2 ** (exponent - 15)
}

const tiesToEven = (value: number): number => {
  const down = Math.floor(value)
  const rest = value - down
  return rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down
}

/**
 * `value` as the reference evaluator keeps it in a tensor of this type. 16-bit floats are rounded, since the tensor cannot hold anything else;
 * f32 stays exact, because the evaluator's float64 stands for the ideal value. Integers wrap, u8 wraps to a byte, bool is 0 or 1.
 */
export const store = (dtype: DType, value: number): number => {
  switch (dtype) {
    case "f32":
      return value
    case "bf16":
      return fromBf16Bits(toBf16Bits(value))
    case "f16":
      return fromF16Bits(toF16Bits(value))
    case "i32":
      return value | 0
    case "u32":
      return value >>> 0
    case "u8":
      return value & 255
    case "bool":
      return value === 0 ? 0 : 1
  }
}

/** The largest finite value of a float type. */
export const maxOf = (dtype: DType): number =>
  dtype === "f16" ? 65504 : dtype === "bf16" ? fromBf16Bits(0x7f7f) : 3.4028234663852886e38
