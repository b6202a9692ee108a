import { property } from "./cases.ts"
import { doubleWord, expectClose, F32, floatTypes, I32, precision, Scene } from "./harness.ts"

property(
  "softmax cross-entropy",
  (library, random) => {
    const rows = random.size(12)
    const classes = Math.max(1, random.size(70))
    const kind = random.int(0, 1)
    const smoothing = random.pick([0, 0, 0.1])
    const shift = random.pick([0, 0, 1000, -1000])
    const scene = new Scene(library)
    const row = classes + random.int(0, 2)
    const count = rows === 0 ? 0 : (rows - 1) * row + classes
    const logits = scene.operand(random.pick(floatTypes), count, () => random.normal() * 3 + shift)
    const targetRow = kind ? classes + random.int(0, 2) : random.int(0, 2)
    const targets = kind
      ? scene.operand(
          random.pick(floatTypes),
          rows === 0 ? 0 : (rows - 1) * targetRow + classes,
          () => random.next() / classes
        )
      : scene.operand(I32, rows === 0 ? 0 : (rows - 1) * targetRow + 1, () => random.int(-1, classes))
    const loss = scene.operand(F32, rows)
    const lse = scene.operand(F32, rows)
    const head = [
      [rows, classes, kind],
      doubleWord(smoothing),
      [...logits.words, row, ...targets.words, targetRow]
    ] as const
    scene.add(9, ...head, [...loss.words, ...lse.words])
    if (scene.run(random.int(1, 2)) !== 0) throw new Error("not run")
    const dlossStride = random.int(0, 1)
    const dloss = scene.operand(F32, dlossStride ? rows : 1, () => random.normal())
    const dRow = classes + random.int(0, 2)
    const dlogits = scene.operand(random.pick(floatTypes), rows === 0 ? 0 : (rows - 1) * dRow + classes)
    scene.plan.length = 0
    scene.add(10, ...head, [...lse.words, ...dloss.words, dlossStride, ...dlogits.words, dRow])
    if (scene.run(random.int(1, 2)) !== 0) throw new Error("backward not run")
    for (let i = 0; i < rows; i++) {
      const x = Array.from({ length: classes }, (_, c) => logits.get(i * row + c))
      const top = Math.max(...x)
      const norm = top + Math.log(x.reduce((s, value) => s + Math.exp(value - top), 0))
      const label = kind ? -1 : targets.get(i * targetRow)
      const ignored = !kind && (label < 0 || label >= classes)
      const t = x.map(
        (_, c) => (1 - smoothing) * (kind ? targets.get(i * targetRow + c) : Number(c === label)) + smoothing / classes
      )
      const expected = ignored ? 0 : t.reduce((s, w, c) => s + w * (norm - x[c]!), 0)
      expectClose("lse", lse.get(i), norm, 2e-7, 1e-6)
      expectClose("loss", loss.get(i), expected, 2e-6, 4e-6)
      const sum = t.reduce((a, b) => a + b, 0)
      const scale = dloss.get(i * dlossStride)
      for (let c = 0; c < classes; c++) {
        const g = ignored ? 0 : scale * (sum * Math.exp(x[c]! - norm) - t[c]!)
        // The stored log-sum-exp is a float: around 1000 its last bit is 6e-5.
        expectClose(
          "dlogits",
          dlogits.get(i * dRow + c),
          g,
          precision(dlogits.type),
          (shift ? 1e-4 : 2e-6) * (1 + Math.abs(scale))
        )
      }
    }
  },
  150
)
