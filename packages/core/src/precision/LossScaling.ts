/** The dynamic loss scale: what it is before the first step, and what a step makes of it. */
import type { Precision } from "./Policy.ts"

export interface LossScaleState {
  readonly scale: number
  /** Finite steps since the last change. */
  readonly good: number
  /** Non-finite steps still borne. */
  readonly patience: number
}

/** Before the first step; a scale of 1 that never changes when the policy has none. */
export const initialLossScale = (precision: Precision): LossScaleState => ({
  scale: precision.lossScale?.initial ?? 1,
  good: 0,
  patience: precision.lossScale?.hysteresis ?? 0
})

/** Whether a step that is not finite cannot be borne: there is no scale, or it is as low as it may be and patience is used up. */
export const isLowest = ({ lossScale }: Precision, state: LossScaleState): boolean =>
  lossScale === null || (state.scale <= lossScale.minimum && state.patience <= 0)

/**
 * After one step. Patience comes back only when the scale grows, so that once it is used up every further non-finite step lowers the scale.
 * @source megatron/optimizer/grad_scaler.py DynamicGradScaler.update
 */
export const nextLossScale = (precision: Precision, state: LossScaleState, finite: boolean): LossScaleState => {
  const p = precision.lossScale
  if (p === null) return state
  if (!finite) {
    const patience = state.patience - 1
    return { scale: patience <= 0 ? Math.max(state.scale * p.backoff, p.minimum) : state.scale, good: 0, patience }
  }
  if (state.good + 1 < p.growthInterval) return { ...state, good: state.good + 1 }
  return { scale: state.scale * p.growth, good: 0, patience: p.hysteresis }
}
