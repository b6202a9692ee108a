/** Position embeddings for a picture of another size: four ways in which published code resizes the grid. They do not agree; name the one to match. */

/**
 * zoom: scipy.ndimage.zoom of order 1, corners aligned (Rosetta, google-research/vision_transformer). bilinear: torch interpolate with align_corners
 * false (NeMo's load hook). bicubic: torch bicubic, a = -0.75, half-pixel centres (NeMo at run time, Hugging Face). bicubicAntialias: a = -0.5 with a
 * window that widens when shrinking and is cut at the border, as Pillow (timm, open_clip).
 */
export type Mode = "zoom" | "bilinear" | "bicubic" | "bicubicAntialias"

/** `[rows, cols, width]`, row-major. */
export interface GridValues {
  readonly rows: number
  readonly cols: number
  readonly width: number
  readonly data: Float32Array
}

/** Which inputs, with which weights, make one output. */
interface Taps {
  readonly from: ReadonlyArray<number>
  readonly weights: ReadonlyArray<number>
}

/** `[rows, cols, width] -> [to.rows, to.cols, width]`, channel by channel; the same values when the grid does not change. */
export const resize = (
  grid: GridValues,
  to: { readonly rows: number; readonly cols: number },
  mode: Mode
): GridValues => {
  if (grid.rows === to.rows && grid.cols === to.cols) return grid
  const { cols, rows, width } = grid
  const [down, across] = [taps(rows, to.rows, mode), taps(cols, to.cols, mode)]
  const middle = new Float64Array(rows * to.cols * width)
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < to.cols; c++) {
      const { from, weights } = across[c]!
      from.forEach((source, k) => {
        for (let i = 0; i < width; i++)
          middle[(r * to.cols + c) * width + i]! += weights[k]! * grid.data[(r * cols + source) * width + i]!
      })
    }
  }
  const line = to.cols * width
  const data = new Float64Array(to.rows * line)
  down.forEach(({ from, weights }, r) =>
    from.forEach((source, k) => {
      for (let i = 0; i < line; i++) data[r * line + i]! += weights[k]! * middle[source * line + i]!
    })
  )
  return { ...to, width, data: Float32Array.from(data) }
}

const taps = (before: number, after: number, mode: Mode): ReadonlyArray<Taps> =>
  Array.from({ length: after }, (_, i) => {
    const half = ((i + 0.5) * before) / after - 0.5
    switch (mode) {
      case "zoom":
        return linear(after === 1 ? 0 : (i * (before - 1)) / (after - 1), before)
      case "bilinear":
        return linear(Math.max(0, half), before)
      case "bicubic":
        return cubicAt(half, before)
      case "bicubicAntialias":
        return windowed(half + 0.5, before, Math.max(1, before / after))
    }
  })

const linear = (at: number, size: number): Taps => {
  const low = Math.min(Math.floor(at), size - 1)
  const high = Math.min(low + 1, size - 1)
  return { from: [low, high], weights: [1 - (at - low), at - low] }
}

/** The cubic convolution kernel with parameter a. @source Keys 1981, equation 4 */
const cubic = (distance: number, a: number): number => {
  const x = Math.abs(distance)
  if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0
}

/** Four taps; those beyond the border repeat it. */
const cubicAt = (at: number, size: number): Taps => {
  const low = Math.floor(at)
  const offsets = [-1, 0, 1, 2]
  return {
    from: offsets.map((o) => Math.min(size - 1, Math.max(0, low + o))),
    weights: offsets.map((o) => cubic(at - low - o, -0.75))
  }
}

/** All taps within two (widened) pixels of the centre; those beyond the border are left out and the rest weighted up. */
const windowed = (centre: number, size: number, widen: number): Taps => {
  const first = Math.max(0, Math.trunc(centre - 2 * widen + 0.5))
  const last = Math.min(size, Math.trunc(centre + 2 * widen + 0.5))
  const from = Array.from({ length: last - first }, (_, k) => first + k)
  const raw = from.map((j) => cubic((j + 0.5 - centre) / widen, -0.5))
  const total = raw.reduce((a, b) => a + b, 0)
  return { from, weights: raw.map((w) => w / total) }
}
