/**
 * A small stroke font of our own. Pictures drawn on machines without any installed font would otherwise have no text.
 * Glyphs are SVG paths in units where capitals are 7 high (baseline at 7, descenders to 9), drawn with a round pen.
 */

type Glyph = readonly [width: number, path: string]

const oval = (x: number, rx: number, top: number, ry: number) =>
  `M${x} ${top}a${rx} ${ry} 0 1 1 0 ${2 * ry}a${rx} ${ry} 0 1 1 0 ${-2 * ry}`

const bowl = oval(1.95, 1.95, 2.2, 2.4)
const arch = "M0 4.3C.3 3 1 2.2 2 2.2C3.2 2.2 3.6 3 3.6 4.3V7"

const glyphs: Readonly<Record<string, Glyph>> = {
  A: [5, "M0 7L2.5 0L5 7M.9 4.6H4.1"],
  B: [4.45, "M0 0V7H2.6A1.85 1.85 0 0 0 2.6 3.3H0M0 0H2.4A1.65 1.65 0 0 1 2.4 3.3"],
  C: [5, "M5 1.6A2.7 3.5 0 1 0 5 5.4"],
  D: [5, "M0 0V7H1.8A3.2 3.5 0 0 0 1.8 0Z"],
  E: [4.1, "M4.1 0H0V7H4.1M0 3.4H3.5"],
  F: [3.9, "M3.9 0H0V7M0 3.4H3.4"],
  G: [5.2, "M5 1.5A2.7 3.5 0 1 0 5.2 5.3V3.8H3.1"],
  H: [4.8, "M0 0V7M4.8 0V7M0 3.4H4.8"],
  I: [0.1, "M.05 0V7"],
  J: [3.2, "M3.2 0V5.3A1.6 1.7 0 0 1 0 5.3"],
  K: [4.5, "M0 0V7M4.3 0L0 4.4M1.6 2.8L4.5 7"],
  L: [3.8, "M0 0V7H3.8"],
  M: [5.8, "M0 7V0L2.9 4.6L5.8 0V7"],
  N: [4.8, "M0 7V0L4.8 7V0"],
  O: [5.6, oval(2.8, 2.8, 0, 3.5)],
  P: [4.4, "M0 7V0H2.5A1.95 1.95 0 0 1 2.5 3.9H0"],
  Q: [5.6, `${oval(2.8, 2.8, 0, 3.5)}M3.4 5.2L5.5 7.4`],
  R: [4.5, "M0 7V0H2.5A1.95 1.95 0 0 1 2.5 3.9H0M2.2 3.9L4.5 7"],
  S: [4.4, "M4.2 1.5C3.9.5 3.2 0 2.2 0C1 0 .2.7.2 1.75C.2 4.1 4.4 2.9 4.4 5.2C4.4 6.3 3.5 7 2.3 7C1.1 7 .3 6.4 0 5.3"],
  T: [4.8, "M0 0H4.8M2.4 0V7"],
  U: [4.8, "M0 0V4.6A2.4 2.4 0 0 0 4.8 4.6V0"],
  V: [4.8, "M0 0L2.4 7L4.8 0"],
  W: [7, "M0 0L1.8 7L3.5 1.2L5.2 7L7 0"],
  X: [4.6, "M0 0L4.6 7M4.6 0L0 7"],
  Y: [4.6, "M0 0L2.3 3.6V7M4.6 0L2.3 3.6"],
  Z: [4.5, "M.1 0H4.5L0 7H4.5"],
  a: [3.9, `${bowl}M3.9 2.2V7`],
  b: [3.9, `${bowl}M0 0V7`],
  c: [3.6, "M3.6 3.3A1.95 2.4 0 1 0 3.6 5.9"],
  d: [3.9, `${bowl}M3.9 0V7`],
  e: [3.9, "M0 4.5H3.9A1.95 2.4 0 1 0 3.5 6"],
  f: [2.5, "M2.6.1C1.5-.2 1 .4 1 1.5V7M0 2.4H2.3"],
  g: [3.9, `${bowl}M3.9 2.2V7.2C3.9 8.6 3 9.2 2 9.2C1.2 9.2.6 8.9.2 8.3`],
  h: [3.6, `M0 0V7${arch}`],
  i: [0.1, "M.05 2.3V7M.05 .4V.3"],
  j: [1, "M.9 2.3V7.7C.9 8.7.4 9.1-.4 9M.9 .4V.3"],
  k: [3.4, "M0 0V7M3.2 2.3L0 5.2M1.3 4L3.4 7"],
  l: [0.1, "M.05 0V7"],
  m: [6, "M0 2.3V7M0 4.3C.3 3 .9 2.2 1.7 2.2C2.7 2.2 3 3 3 4.3V7M3 4.3C3.3 3 3.9 2.2 4.7 2.2C5.7 2.2 6 3 6 4.3V7"],
  n: [3.6, `M0 2.3V7${arch}`],
  o: [4, oval(2, 2, 2.2, 2.4)],
  p: [3.9, `${bowl}M0 2.2V9.2`],
  q: [3.9, `${bowl}M3.9 2.2V9.2`],
  r: [2.2, "M0 2.3V7M0 4.5C.3 3 1 2.1 2.2 2.4"],
  s: [
    3.2,
    "M3 3.2C2.7 2.5 2.3 2.2 1.6 2.2C.7 2.2.2 2.7.2 3.4C.2 5 3.2 4.2 3.2 5.7C3.2 6.5 2.6 7 1.7 7C.8 7 .2 6.6 0 5.9"
  ],
  t: [2.4, "M.9.6V5.7C.9 6.8 1.5 7.2 2.4 6.9M0 2.4H2.3"],
  u: [3.6, "M0 2.2V5C0 6.3.5 7 1.6 7C2.6 7 3.3 6.3 3.6 4.9M3.6 2.2V7"],
  v: [3.6, "M0 2.2L1.8 7L3.6 2.2"],
  w: [5.4, "M0 2.2L1.4 7L2.7 2.8L4 7L5.4 2.2"],
  x: [3.4, "M0 2.2L3.4 7M3.4 2.2L0 7"],
  y: [3.6, "M0 2.2L1.8 7M3.6 2.2L1.5 7.7C1.1 8.8.7 9.2-.1 9"],
  z: [3.3, "M.1 2.2H3.3L0 7H3.3"],
  "0": [4.2, oval(2.1, 2.1, 0, 3.5)],
  "1": [4.2, "M.9 1.5L2.6 0V7"],
  "2": [4.2, "M.2 1.9C.2.8 1 0 2.1 0C3.2 0 4 .8 4 1.9C4 3.4 2 4.6.1 7H4.2"],
  "3": [
    4.2,
    "M.3 1.3C.6.5 1.2 0 2.1 0C3.2 0 3.9.7 3.9 1.7C3.9 2.7 3.1 3.3 1.8 3.3C3.3 3.3 4.2 4 4.2 5.1C4.2 6.3 3.3 7 2.1 7C1.1 7 .4 6.5 0 5.6"
  ],
  "4": [4.2, "M3.1 7V0L0 4.9H4.2"],
  "5": [4.2, "M3.8 0H.7L.4 3.2C.9 2.8 1.5 2.6 2.1 2.6C3.4 2.6 4.2 3.5 4.2 4.8C4.2 6.1 3.3 7 2.1 7C1.1 7 .4 6.5 0 5.7"],
  "6": [
    4.2,
    "M3.7.9C3.3.3 2.8 0 2.2 0C.8 0 0 1.5 0 4C0 6 .8 7 2.1 7C3.3 7 4.2 6.1 4.2 4.8C4.2 3.5 3.3 2.7 2.2 2.7C1.1 2.7.2 3.4 0 4.6"
  ],
  "7": [4.2, "M0 0H4.2L1.5 7"],
  "8": [
    4.2,
    "M2.1 0C3.2 0 3.9.7 3.9 1.65C3.9 2.6 3.2 3.3 2.1 3.3C1 3.3.3 2.6.3 1.65C.3.7 1 0 2.1 0ZM2.1 3.3C3.4 3.3 4.2 4 4.2 5.1C4.2 6.2 3.4 7 2.1 7C.8 7 0 6.2 0 5.1C0 4 .8 3.3 2.1 3.3Z"
  ],
  "9": [
    4.2,
    "M.5 6.1C.9 6.7 1.4 7 2 7C3.4 7 4.2 5.5 4.2 3C4.2 1 3.4 0 2.1 0C.9 0 0 .9 0 2.2C0 3.5.9 4.3 2 4.3C3.1 4.3 4 3.6 4.2 2.4"
  ],
  "%": [6.2, `${oval(1.3, 1.3, 0, 1.6)}${oval(4.9, 1.3, 3.8, 1.6)}M5 0L1.2 7`],
  ".": [0.1, "M.05 6.9V7"],
  ",": [0.5, "M.4 6.8C.5 7.4.3 8-.1 8.3"],
  ":": [0.1, "M.05 3V3.1M.05 6.9V7"],
  ";": [0.5, "M.3 3V3.1M.4 6.8C.5 7.4.3 8-.1 8.3"],
  "-": [2.2, "M0 4.4H2.2"],
  _: [4, "M0 8H4"],
  "/": [2.6, "M0 7.7L2.6-.5"],
  "(": [1.4, "M1.4-.6C-.4 2-.4 5.6 1.4 8.2"],
  ")": [1.4, "M0-.6C1.8 2 1.8 5.6 0 8.2"],
  "[": [1.3, "M1.3-.5H0V8.1H1.3"],
  "]": [1.3, "M0-.5H1.3V8.1H0"],
  "+": [3.8, "M0 4.1H3.8M1.9 2.2V6"],
  "=": [3.8, "M0 3.1H3.8M0 5.1H3.8"],
  "<": [3.6, "M3.6 1.8L0 4.1L3.6 6.4"],
  ">": [3.6, "M0 1.8L3.6 4.1L0 6.4"],
  "'": [0.1, "M.05 0V1.6"],
  '"': [1.4, "M.1 0V1.6M1.3 0V1.6"],
  "!": [0.1, "M.05 0V4.8M.05 6.9V7"],
  "?": [3.6, "M0 1.7C.1.7.8 0 1.8 0C2.9 0 3.6.7 3.6 1.7C3.6 3.2 1.8 3.2 1.8 5M1.8 6.9V7"],
  "*": [2.8, "M1.4 .2V3.4M0 1L2.8 2.6M2.8 1L0 2.6"],
  "#": [4.6, "M1.5 .5L.9 6.5M3.7 .5L3.1 6.5M.2 2.4H4.6M0 4.6H4.4"],
  "&": [5, "M5 7L1.3 2.4C.5 1.3 1 0 2.2 0C3.4 0 3.8 1.4 2.8 2.3L1 3.7C-.6 5 .2 7 2 7C3.4 7 4.4 6 4.8 4.2"],
  "…": [4.6, "M.3 6.9V7M2.3 6.9V7M4.3 6.9V7"]
}

const missing: Glyph = [3.4, "M0 0H3.4V7H0Z"]
const spaceWidth = 1.6
const tracking = 1.5

/** Units of the font in one unit of `size`, which means the same as a font size in pixels. */
const scaleOf = (size: number) => (size * 0.72) / 7

/** Letters without the accents that the font lacks. */
const lettersOf = (text: string): ReadonlyArray<string> => [
  ...text
    .normalize("NFD")
    .replaceAll(/\p{Mn}/gu, "")
    .replaceAll("–", "-")
    .replaceAll("’", "'")
]

const glyphOf = (letter: string): Glyph =>
  letter.trim() === "" ? [spaceWidth, ""] : Object.hasOwn(glyphs, letter) ? glyphs[letter]! : missing

/** Width of a text, in pixels. */
export const measure = (text: string, size: number): number => {
  const letters = lettersOf(text)
  const units = letters.reduce((sum, letter) => sum + glyphOf(letter)[0] + tracking, -tracking)
  return Math.max(0, units) * scaleOf(size)
}

/** The text, or its beginning with an ellipsis where it is wider than `width`. */
export const shorten = (text: string, size: number, width: number): string => {
  if (measure(text, size) <= width) return text
  const letters = [...text]
  while (letters.length > 0 && measure(`${letters.join("").trimEnd()}…`, size) > width) letters.pop()
  return `${letters.join("").trimEnd()}…`
}

export interface TextStyle {
  readonly x: number
  /** The baseline. */
  readonly y: number
  /** As a font size, in pixels. */
  readonly size: number
  readonly color: string
  readonly anchor?: "start" | "middle" | "end"
  readonly bold?: boolean
  /** Degrees, clockwise around (x, y). */
  readonly rotate?: number
}

const round = (value: number) => Math.round(value * 100) / 100

/** The text as an SVG element made of paths. */
export const text = (content: string, style: TextStyle): string => {
  const scale = scaleOf(style.size)
  const width = measure(content, style.size) / scale
  let x = style.anchor === "middle" ? -width / 2 : style.anchor === "end" ? -width : 0
  const paths: Array<string> = []
  for (const letter of lettersOf(content)) {
    const [advance, path] = glyphOf(letter)
    if (path !== "") paths.push(`<path transform="translate(${round(x)} -7)" d="${path}"/>`)
    x += advance + tracking
  }
  const turn = style.rotate === undefined ? "" : ` rotate(${style.rotate})`
  const place = `translate(${round(style.x)} ${round(style.y)})${turn} scale(${round(scale * 1000) / 1000})`
  const pen = style.bold === true ? 1.3 : 0.85
  return `<g transform="${place}" fill="none" stroke="${style.color}" stroke-width="${pen}" stroke-linecap="round" stroke-linejoin="round">${paths.join("")}</g>`
}
