/** What intermediates hold at the worst moment, by what they are for. */
import type { Interval } from "../Arena.ts"
import type { Role } from "../Node.ts"

export interface Peak {
  /** Bytes alive then, without the gaps that placement leaves. */
  readonly bytes: number
  /** Launch at which it happens. */
  readonly launch: number
  readonly byRole: Readonly<Record<Role, number>>
}

const roles: ReadonlyArray<Role> = ["compute", "parameter", "gradient", "optimizer", "gathered"]

export const peakOf = (intervals: ReadonlyArray<Interval>, roleOf: (buffer: number) => Role): Peak => {
  const last = intervals.reduce((n, i) => Math.max(n, i.to), -1)
  const change = new Float64Array(last + 2)
  for (const i of intervals) {
    change[i.from]! += i.bytes
    change[i.to + 1]! -= i.bytes
  }
  let [now, bytes, launch] = [0, 0, 0]
  for (let k = 0; k <= last; k++) {
    now += change[k]!
    if (now > bytes) [bytes, launch] = [now, k]
  }
  const byRole = Object.fromEntries(roles.map((role) => [role, 0])) as Record<Role, number>
  for (const i of intervals) if (i.from <= launch && launch <= i.to) byRole[roleOf(i.id)] += i.bytes
  return { bytes, launch, byRole }
}
