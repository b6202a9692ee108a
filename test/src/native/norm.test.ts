import { property } from "./cases.ts"
import { doubleWord, expectClose, F32, floatTypes, precision, Scene } from "./harness.ts"

property(
  "norms",
  (library, random) => {
    const kind = random.int(0, 1)
    const rows = random.chance(0.1) ? random.int(120, 300) : random.size(20)
    const width = random.chance(0.05) ? 0 : Math.max(1, random.size(70))
    const epsilon = 1e-5
    const flags = random.int(0, 3)
    const scene = new Scene(library)
    const row = width + random.int(0, 2)
    const count = rows === 0 || width === 0 ? 0 : (rows - 1) * row + width
    const normal = () => random.normal() + 0.5
    const x = scene.operand(random.pick(floatTypes), count, normal)
    const gamma = scene.operand(random.pick(floatTypes), width, normal)
    const beta = scene.operand(random.pick(floatTypes), width, normal)
    const y = scene.operand(random.pick(floatTypes), count)
    const mean = scene.operand(F32, rows)
    const rstd = scene.operand(F32, rows)
    scene.add(7, [kind, rows, width], doubleWord(epsilon), [
      ...x.words,
      row,
      ...gamma.words,
      ...beta.words,
      ...y.words,
      row,
      ...mean.words,
      ...rstd.words,
      flags
    ])
    if (scene.run(random.int(1, 2)) !== 0) throw new Error("not run")

    const add = random.chance(0.4) ? 4 : 0
    const dy = scene.operand(random.pick(floatTypes), count, normal)
    const dx = scene.operand(random.pick(floatTypes), count, normal)
    const before = Array.from({ length: count }, (_, i) => dx.get(i))
    const dgamma = scene.operand(random.pick(floatTypes), width)
    const dbeta = scene.operand(random.pick(floatTypes), width)
    scene.plan.length = 0
    scene.add(8, [kind, rows, width], doubleWord(epsilon), [
      ...x.words,
      row,
      ...gamma.words,
      ...mean.words,
      ...rstd.words,
      ...dy.words,
      row,
      ...dx.words,
      row,
      ...dgamma.words,
      ...dbeta.words,
      flags | add
    ])
    if (scene.run(random.int(1, 2)) !== 0) throw new Error("backward not run")
    if (width === 0) return

    const dgammaSum = new Float64Array(width)
    const dbetaSum = new Float64Array(width)
    const size = new Float64Array(width)
    for (let i = 0; i < rows; i++) {
      const all = Array.from({ length: width }, (_, j) => x.get(i * row + j))
      const m = kind === 1 ? 0 : all.reduce((a, b) => a + b, 0) / width
      const k = 1 / Math.sqrt(all.reduce((a, b) => a + (b - m) ** 2, 0) / width + epsilon)
      if (kind === 0) expectClose("mean", mean.get(i), m, 1e-6, 1e-6)
      // One element has no variance: what the mean's rounding leaves decides, so only its scale can be asked for.
      const tolerance = width < 3 ? 1e-2 : 1e-5
      expectClose("rstd", rstd.get(i), k, tolerance, 0)
      const h = all.map((value) => (value - m) * k)
      const w = h.map((_, j) => dy.get(i * row + j) * (flags & 1 ? gamma.get(j) : 1))
      const m1 = kind === 1 ? 0 : w.reduce((a, b) => a + b, 0) / width
      const m2 = w.reduce((a, b, j) => a + b * h[j]!, 0) / width
      for (let j = 0; j < width; j++) {
        const value = h[j]! * (flags & 1 ? gamma.get(j) : 1) + (flags & 2 && kind === 0 ? beta.get(j) : 0)
        expectClose("y", y.get(i * row + j), value, precision(y.type), 10 * tolerance)
        const g = k * (w[j]! - m1 - h[j]! * m2) + (add ? before[i * row + j]! : 0)
        expectClose("dx", dx.get(i * row + j), g, precision(dx.type), tolerance * (1 + k) * 10)
        dgammaSum[j]! += dy.get(i * row + j) * h[j]!
        dbetaSum[j]! += dy.get(i * row + j)
        size[j]! += Math.abs(dy.get(i * row + j))
      }
    }
    for (let j = 0; j < width; j++) {
      if (flags & 1)
        expectClose(
          "dgamma",
          dgamma.get(j),
          dgammaSum[j]!,
          precision(dgamma.type),
          (width < 3 ? 1e-2 : 1e-5) * (1 + size[j]!)
        )
      if (flags & 2) expectClose("dbeta", dbeta.get(j), dbetaSum[j]!, precision(dbeta.type), 1e-6 * (1 + size[j]!))
    }
  },
  150
)
