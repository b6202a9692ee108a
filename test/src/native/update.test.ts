import { property } from "./cases.ts"
import { doubleWord, expectClose, F32, floatTypes, precision, Scene } from "./harness.ts"

property("AdamW", (library, random) => {
  const count = random.size(700)
  const inPlace = random.chance(0.5)
  const [b1, b2, eps, decay, rate, step, scale] = [
    0.9,
    0.999,
    1e-8,
    0.05,
    1e-2,
    random.int(1, 9),
    random.pick([1, 0.5])
  ]
  const scene = new Scene(library)
  const inputs = [0, 1, 2, 3].map((i) =>
    scene.operand(random.pick(floatTypes), count, () => (i === 3 ? random.next() + 0.01 : random.normal()))
  )
  const before = inputs.map((x) => Array.from({ length: count }, (_, i) => x.get(i)))
  const outputs = [0, 2, 3].map((i) => (inPlace ? inputs[i]! : scene.operand(random.pick(floatTypes), count)))
  const c1 = 1 - b1 ** step
  const c2 = 1 - b2 ** step
  const scalars = scene.operand(F32, 4, (i) => [rate, c1, c2, scale][i]!)
  scene.add(
    15,
    [count, ...inputs.flatMap((x) => x.words), ...outputs.flatMap((x) => x.words), ...scalars.words],
    ...[b1, b2, eps, decay].map(doubleWord)
  )
  if (scene.run() !== 0) throw new Error("not run")
  for (let i = 0; i < count; i++) {
    const [p, gradient, m, v] = before.map((x) => x[i]!) as [number, number, number, number]
    const g = gradient * scale
    const m1 = b1 * m + (1 - b1) * g
    const v1 = b2 * v + (1 - b2) * g * g
    const p1 = p * (1 - rate * decay) - (rate * (m1 / c1)) / (Math.sqrt(v1 / c2) + eps)
    ;[p1, m1, v1].forEach((x, o) =>
      expectClose(`output ${o}`, outputs[o]!.get(i), x, precision(outputs[o]!.type) + 2e-6, 2e-6)
    )
  }
})
