/**
 * Learning rates as pure functions of the optimizer step: 0 for the first update, counted once per update, whatever the number of ranks or
 * microbatches. Warm-ups and totals are in steps.
 */

export interface Schedule {
  /** For printing: the formula and its numbers. */
  readonly name: string
  readonly at: (step: number) => number
}

const describe = (kind: string, options: object): string =>
  `${kind}(${Object.entries(options)
    .map(([k, v]) => `${k} ${v}`)
    .join(", ")})`

const clamp = (x: number, low: number, high: number): number => Math.min(high, Math.max(low, x))

/** 1 at progress 0, 0 at progress 1, half a cosine wave between. */
const halfCosine = (progress: number): number => 0.5 * (1 + Math.cos(Math.PI * progress))

export const make = (name: string, at: (step: number) => number): Schedule => ({ name, at })

export const constant = (value: number): Schedule => make(describe("constant", { value }), () => value)

/** The same schedule times a factor. */
export const scaled = (schedule: Schedule, factor: number): Schedule =>
  make(`${factor} * ${schedule.name}`, (step) => factor * schedule.at(step))

export interface Ramp {
  readonly base: number
  readonly total: number
  /** Linear from 0 at step 0; the base is reached at this step. */
  readonly warmup?: number
  /** Linear factor to 0 over the last steps, on top of the decay. */
  readonly cooldown?: number
}

/** Big_vision's frame: progress from the end of the warm-up to the total, times warm-up, times cool-down. */
const ramped =
  ({ cooldown = 0, total, warmup = 0 }: Ramp, decay: (progress: number, step: number) => number) =>
  (step: number) => {
    const progress = clamp((step - warmup) / Math.max(1, total - warmup), 0, 1)
    const up = warmup > 0 ? Math.min(1, step / warmup) : 1
    const down = cooldown > 0 ? Math.max(0, Math.min(1, (total - step) / cooldown)) : 1
    return decay(progress, step) * up * down
  }

/**
 * Linear (or, with `power`, polynomial) from the base to `end`, with warm-up and cool-down.
 * @source big_vision/utils.py create_learning_rate_schedule, decay_type "linear" and "polynomial"
 */
export const linear = (options: Ramp & { readonly end?: number; readonly power?: number }): Schedule => {
  const { base, end = 0, power = 1 } = options
  return make(
    describe("linear", options),
    ramped(options, (progress) => end + (base - end) * (1 - progress) ** power)
  )
}

/**
 * Half a cosine wave from the base to `end`, with warm-up and cool-down.
 * @source big_vision/utils.py create_learning_rate_schedule, decay_type "cosine" (there `end` is 0)
 */
export const cosine = (options: Ramp & { readonly end?: number }): Schedule => {
  const { base, end = 0 } = options
  return make(
    describe("cosine", options),
    ramped(options, (progress) => end + (base - end) * halfCosine(progress))
  )
}

/**
 * base / sqrt(1 + (step + shift - warmup) / timescale) after the warm-up, with cool-down: may be prolonged at will, since only the cool-down knows
 * the total. @source big_vision/utils.py create_learning_rate_schedule, decay_type "rsqrt"; arXiv:2106.04560, section 3.4
 */
export const rsqrt = (options: Ramp & { readonly timescale?: number; readonly shift?: number }): Schedule => {
  const { base, shift = 0, timescale = 10_000, warmup = 0 } = options
  return make(
    describe("rsqrt", options),
    ramped(options, (_progress, step) => base / Math.sqrt(1 + (Math.max(step - warmup, 0) + shift) / timescale))
  )
}

/**
 * NeMo's CosineAnnealing without constant steps: base * (step + 1) / (warmup + 1) up to and including step `warmup`, then a cosine over
 * total - warmup steps to `minimum`, then `minimum`. @source nemo/core/optim/lr_scheduler.py WarmupAnnealHoldPolicy, CosineAnnealing
 */
export const nemoCosine = (options: {
  readonly base: number
  readonly warmup: number
  readonly total: number
  readonly minimum: number
}): Schedule => {
  const { base, minimum, total, warmup } = options
  return make(describe("nemoCosine", options), (step) => {
    if (warmup > 0 && step <= warmup) return (base * (step + 1)) / (warmup + 1)
    if (step > total) return minimum
    return (base - minimum) * halfCosine((step - warmup) / Math.max(1, total - warmup)) + minimum
  })
}

/** base * ((1 - alpha) * cosine(step / total) + alpha), constant after `total`. @source optax cosine_decay_schedule, exponent 1 */
export const optaxCosine = (options: {
  readonly base: number
  readonly total: number
  readonly alpha?: number
}): Schedule => {
  const { alpha = 0, base, total } = options
  return make(
    describe("optaxCosine", options),
    (step) => base * ((1 - alpha) * halfCosine(Math.min(step, total) / total) + alpha)
  )
}

/**
 * Linear from `initial` to `peak` over `warmup` steps, then a cosine to `end`, which is reached at step `total`: the total includes the warm-up.
 * @source optax warmup_cosine_decay_schedule
 */
export const optaxWarmupCosine = (options: {
  readonly initial: number
  readonly peak: number
  readonly warmup: number
  readonly total: number
  readonly end?: number
}): Schedule => {
  const { end = 0, initial, peak, total, warmup } = options
  const decay = optaxCosine({ base: peak, total: Math.max(1, total - warmup), alpha: peak === 0 ? 0 : end / peak })
  return make(describe("optaxWarmupCosine", options), (step) =>
    step < warmup ? initial + ((peak - initial) * step) / warmup : decay.at(step - warmup)
  )
}

/**
 * base * (step + 1) / warmup for the first `warmup` steps, then a cosine to 0 at `total`.
 * @source open_clip_train/scheduler.py cosine_lr
 */
export const openClipCosine = (options: {
  readonly base: number
  readonly warmup: number
  readonly total: number
}): Schedule => {
  const { base, total, warmup } = options
  return make(describe("openClipCosine", options), (step) =>
    step < warmup ? (base * (step + 1)) / warmup : base * halfCosine((step - warmup) / Math.max(1, total - warmup))
  )
}
