/** Pipeline schedules as data: for every stage the order of its work. Bubbles and live activations are counted before anything runs. */

/** One piece of work of a stage: a pass of one microbatch through one of the chunks of layers that the stage holds. */
export interface Tick {
  readonly pass: "forward" | "backward"
  readonly microbatch: number
  /** Which of the stage's own chunks, from 0. The chunks of the whole model are dealt out in turn: chunk c of stage s is number c * stages + s. */
  readonly chunk: number
}

/** For each stage its ticks in order. */
export type Ticks = ReadonlyArray<ReadonlyArray<Tick>>

export interface Shape {
  readonly stages: number
  readonly microbatches: number
  /** Chunks of each stage; above 1 only when interleaved. */
  readonly virtualStages: number
}

const count = (n: number): ReadonlyArray<number> => Array.from({ length: n }, (_, i) => i)

/** All forward passes, then all backward passes. @source arXiv:1811.06965, figure 2 */
export const gpipe = ({ microbatches, stages }: Shape): Ticks =>
  count(stages).map(() =>
    (["forward", "backward"] as const).flatMap((pass) =>
      count(microbatches).map((microbatch) => ({ pass, microbatch, chunk: 0 }))
    )
  )

/** One forward, one backward, after a warm-up of as many forward passes as stages follow. @source arXiv:1806.03377, section 3.2 */
export const oneForwardOneBackward = ({ microbatches, stages }: Shape): Ticks =>
  count(stages).map((stage) =>
    alternating(
      Math.min(stages - 1 - stage, microbatches),
      microbatches,
      (k) => ({ pass: "forward", microbatch: k, chunk: 0 }),
      (k) => ({ pass: "backward", microbatch: k, chunk: 0 })
    )
  )

const alternating = (
  warm: number,
  total: number,
  forward: (k: number) => Tick,
  backward: (k: number) => Tick
): ReadonlyArray<Tick> => {
  const ticks: Array<Tick> = count(warm).map(forward)
  for (let i = 0; i < total; i++) {
    if (warm + i < total) ticks.push(forward(warm + i))
    ticks.push(backward(i))
  }
  return ticks
}

/**
 * Each stage holds several chunks of layers, and microbatches come back to it; the bubble shrinks by their number. The number of microbatches must
 * be a multiple of that of the stages. @source arXiv:2104.04473, section 2.2; Megatron-LM@core_v0.4.0 megatron/core/pipeline_parallel/schedules.py
 */
export const interleaved = ({ microbatches, stages, virtualStages }: Shape): Ticks => {
  const total = microbatches * virtualStages
  const group = stages * virtualStages
  const chunk = (k: number) => Math.floor((k % group) / stages)
  const microbatch = (k: number) => Math.floor(k / group) * stages + (k % stages)
  return count(stages).map((stage) => {
    const warm =
      microbatches === stages ? total : Math.min(2 * (stages - stage - 1) + (virtualStages - 1) * stages, total)
    return alternating(
      warm,
      total,
      (k) => ({ pass: "forward", microbatch: microbatch(k), chunk: chunk(k) }),
      (k) => ({ pass: "backward", microbatch: microbatch(k), chunk: virtualStages - 1 - chunk(k) })
    )
  })
}

/** Ticks by the name of a schedule. */
export const of = (schedule: "gpipe" | "1f1b" | "interleaved", shape: Shape): Ticks =>
  schedule === "gpipe" ? gpipe(shape) : schedule === "1f1b" ? oneForwardOneBackward(shape) : interleaved(shape)

/** A tick with its place and time. */
export interface Timed extends Tick {
  readonly stage: number
  readonly start: number
  readonly end: number
}

export interface Timeline {
  /** In order of their start. */
  readonly ticks: ReadonlyArray<Timed>
  readonly length: number
  /** Time without work over time with work, the same for every stage: (stages - 1) / (virtual stages * microbatches) at best. */
  readonly bubble: number
  /** The most microbatches of one chunk whose intermediates a stage keeps at one time, summed over its chunks. */
  readonly alive: ReadonlyArray<number>
}

/** Runs ticks on a clock: a forward pass of a chunk takes `forward`, a backward pass `backward`. Null when they wait for each other for ever. */
export const timeline = (
  ticks: Ticks,
  { virtualStages }: Pick<Shape, "virtualStages">,
  cost: { readonly forward: number; readonly backward: number } = { forward: 1, backward: 2 }
): Timeline | null => {
  const stages = ticks.length
  const chunks = stages * virtualStages
  const done = new Map<string, number>()
  const [next, free, alive, peak] = [0, 1, 2, 3].map(() => ticks.map(() => 0)) as [
    Array<number>,
    Array<number>,
    Array<number>,
    Array<number>
  ]
  const all: Array<Timed> = []
  /** When what it needs is there; undefined while it is not. */
  const ready = ({ chunk, microbatch, pass }: Tick, stage: number): number | undefined => {
    const c = chunk * stages + stage
    if (pass === "forward") return c === 0 ? 0 : done.get(`forward ${c - 1} ${microbatch}`)
    const own = done.get(`forward ${c} ${microbatch}`)
    const after = c === chunks - 1 ? own : done.get(`backward ${c + 1} ${microbatch}`)
    return own === undefined || after === undefined ? undefined : Math.max(own, after)
  }
  const left = () => ticks.some((own, stage) => next[stage]! < own.length)
  while (left()) {
    let best: Timed | null = null
    for (let stage = 0; stage < stages; stage++) {
      const tick = ticks[stage]![next[stage]!]
      const at = tick === undefined ? undefined : ready(tick, stage)
      if (tick === undefined || at === undefined) continue
      const start = Math.max(at, free[stage]!)
      if (best === null || start < best.start) best = { ...tick, stage, start, end: start + cost[tick.pass] }
    }
    if (best === null) return null
    const { chunk, end, microbatch, pass, stage } = best
    done.set(`${pass} ${chunk * stages + stage} ${microbatch}`, end)
    free[stage] = end
    next[stage]!++
    all.push(best)
    alive[stage]! += pass === "forward" ? 1 : -1
    peak[stage] = Math.max(peak[stage]!, alive[stage]!)
  }
  const length = Math.max(0, ...free)
  const busy = ticks[0]!.reduce((n, t) => n + cost[t.pass], 0)
  return { ticks: all, length, bubble: length / busy - 1, alive: peak }
}
