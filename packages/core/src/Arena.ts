/** Places intervals of memory in one arena so that those alive together never overlap. */
export interface Interval {
  readonly id: number
  /** First and last launch that touches it, both included. */
  readonly from: number
  readonly to: number
  readonly bytes: number
}

/** Beyond this many intervals the quadratic placement gives way to a linear scan with a free list. */
const quadraticLimit = 6000

export class Arena {
  readonly offsets: ReadonlyMap<number, number>
  readonly bytes: number

  constructor(intervals: ReadonlyArray<Interval>) {
    const placed = intervals.length <= quadraticLimit ? bySize(intervals) : byTime(intervals)
    this.offsets = placed
    this.bytes = intervals.reduce((most, i) => Math.max(most, placed.get(i.id)! + i.bytes), 0)
  }
}

/** Largest first, each at the lowest offset free during its whole life. @source arXiv:2001.03288, section 5.2 */
const bySize = (intervals: ReadonlyArray<Interval>): ReadonlyMap<number, number> => {
  const offsets = new Map<number, number>()
  const placed: Array<Interval & { readonly offset: number }> = []
  for (const i of [...intervals].sort((a, b) => b.bytes - a.bytes || a.from - b.from)) {
    let [best, bestGap] = [-1, Infinity]
    let end = 0
    for (const p of placed) {
      if (p.to < i.from || p.from > i.to) continue
      const gap = p.offset - end
      if (gap >= i.bytes && gap < bestGap) [best, bestGap] = [end, gap]
      end = Math.max(end, p.offset + p.bytes)
    }
    const offset = best >= 0 ? best : end
    offsets.set(i.id, offset)
    insert(placed, { ...i, offset })
  }
  return offsets
}

/** Keeps the list sorted by offset. */
const insert = <T extends { readonly offset: number }>(list: Array<T>, item: T): void => {
  let [low, high] = [0, list.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if (list[middle]!.offset <= item.offset) low = middle + 1
    else high = middle
  }
  list.splice(low, 0, item)
}

/** In order of time, best fit from a free list. */
const byTime = (intervals: ReadonlyArray<Interval>): ReadonlyMap<number, number> => {
  const offsets = new Map<number, number>()
  const starts = [...intervals].sort((a, b) => a.from - b.from || b.bytes - a.bytes)
  const ends = [...intervals].sort((a, b) => a.to - b.to)
  let free: Array<{ readonly offset: number; readonly bytes: number }> = []
  let [top, e] = [0, 0]
  const release = (offset: number, bytes: number) => {
    const next = [...free, { offset, bytes }].sort((a, b) => a.offset - b.offset)
    free = next.reduce<Array<{ offset: number; bytes: number }>>((all, f) => {
      const last = all[all.length - 1]
      if (last !== undefined && last.offset + last.bytes === f.offset) last.bytes += f.bytes
      else all.push({ ...f })
      return all
    }, [])
  }
  for (const i of starts) {
    while (e < ends.length && ends[e]!.to < i.from) {
      release(offsets.get(ends[e]!.id)!, ends[e]!.bytes)
      e++
    }
    const fit = free.filter((f) => f.bytes >= i.bytes).sort((a, b) => a.bytes - b.bytes)[0]
    if (fit === undefined) {
      const last = free[free.length - 1]
      // A hole at the top grows instead of leaving a gap.
      const offset = last !== undefined && last.offset + last.bytes === top ? last.offset : top
      if (last !== undefined && offset === last.offset) free = free.slice(0, -1)
      offsets.set(i.id, offset)
      top = offset + i.bytes
    } else {
      offsets.set(i.id, fit.offset)
      free = free.flatMap((f) =>
        f !== fit ? [f] : f.bytes > i.bytes ? [{ offset: f.offset + i.bytes, bytes: f.bytes - i.bytes }] : []
      )
    }
  }
  return offsets
}
