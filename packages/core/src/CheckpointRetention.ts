/** Which checkpoints stay. */
import type { Metric } from "./CheckpointManifest.ts"

export interface RetentionPolicy {
  /** How many of the newest complete checkpoints stay; at least one always does. */
  readonly keepLast: number
  /** How many with the best value of a metric stay as well. */
  readonly keepBest?: { readonly metric: string; readonly mode: "min" | "max"; readonly count: number }
}

interface Candidate {
  readonly step: number
  readonly complete: boolean
  readonly metric?: Metric
}

/** The candidates with the best metric first; among equals the newer one. Those without the metric are left out. */
export const byMetric = <C extends Candidate>(
  candidates: ReadonlyArray<C>,
  best: { readonly metric: string; readonly mode: "min" | "max" }
): ReadonlyArray<C> => {
  const sign = best.mode === "min" ? 1 : -1
  return candidates
    .filter(({ complete, metric }) => complete && metric?.name === best.metric)
    .toSorted((a, b) => sign * (a.metric!.value - b.metric!.value) || b.step - a.step)
}

/**
 * The checkpoints to delete. Incomplete ones are neither counted nor deleted: they are evidence of a fault. The newest
 * complete one, the best one and the one of step `saved` always stay.
 */
export const expired = <C extends Candidate>(
  candidates: ReadonlyArray<C>,
  policy: RetentionPolicy,
  saved: number
): ReadonlyArray<C> => {
  const complete = candidates.filter((candidate) => candidate.complete)
  const newest = complete.toSorted((a, b) => b.step - a.step).slice(0, Math.max(1, policy.keepLast))
  const best =
    policy.keepBest === undefined
      ? []
      : byMetric(complete, policy.keepBest).slice(0, Math.max(1, policy.keepBest.count))
  const kept = new Set([saved, ...newest.map(({ step }) => step), ...best.map(({ step }) => step)])
  return complete.filter(({ step }) => !kept.has(step))
}
