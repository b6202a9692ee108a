/** What `metrics.jsonl` remembers of a run, as the curves want it. */
import type { Line } from "@tessera/core/layers/JsonlTracker"
import type { History } from "./Svg.ts"

/** The steps, and the evaluations of one name. */
export const historyOf = (lines: Iterable<Line>, evaluation = "validation"): History => {
  const steps: Array<History["steps"][number]> = []
  const evaluations: Array<History["evaluations"][number]> = []
  for (const line of lines) {
    if (line.kind === "step") steps.push(line)
    else if (line.kind === "evaluation" && line.name === evaluation) evaluations.push(line)
  }
  return { steps, evaluations }
}
