import { AxisMismatch, invalid, refuse } from "./Errors.ts"

/**
 * One named axis. `size` is what is stored; `logical` is what is meant and differs only where an axis was padded to divide over a mesh
 * (sequence, vocabulary): elements at and beyond `logical` are masked.
 */
export interface Axis<N extends string = string> {
  readonly name: N
  readonly size: number
  readonly logical: number
}

/** Axes in memory order. Order never carries meaning: axes are compared by name. */
export type Axes = ReadonlyArray<Axis>

export const make = <N extends string>(name: N, size: number, logical: number = size): Axis<N> => {
  if (!Number.isInteger(size) || size < 0)
    invalid("axis", `axis "${name}" has size ${size}; a size is a whole number of at least 0`)
  if (!(logical <= size)) invalid("axis", `axis "${name}" is stored in ${size} but means ${logical} elements`)
  return { name, size, logical }
}

/** `{ batch: 8, embed: 16 }` to axes, in the order written. */
export const list = (sizes: Readonly<Record<string, number>>): Axes =>
  Object.entries(sizes).map(([name, size]) => make(name, size))

export const names = (axes: Axes): ReadonlyArray<string> => axes.map((a) => a.name)

export const has = (axes: Axes, name: string): boolean => axes.some((a) => a.name === name)

export const find = (axes: Axes, name: string): Axis | undefined => axes.find((a) => a.name === name)

/** Number of elements. */
export const count = (axes: Axes): number => axes.reduce((n, a) => n * a.size, 1)

export const without = (axes: Axes, over: ReadonlyArray<string>): Axes => axes.filter((a) => !over.includes(a.name))

/**
 * All axes of all operands, those of the operand with most axes first, so that a bias never changes the memory order of what it is added to.
 * Throws `AxisMismatch` when sizes disagree.
 */
export const union = (operation: string, lists: ReadonlyArray<Axes>): Axes => {
  const order = lists.map((axes, i) => ({ axes, i })).sort((a, b) => b.axes.length - a.axes.length || a.i - b.i)
  return inOrder(
    operation,
    order.map((o) => o.axes)
  )
}

/** All axes, those of the first operand first. */
export const inOrder = (operation: string, lists: ReadonlyArray<Axes>): Axes => {
  const all: Array<Axis> = []
  for (const axes of lists) {
    for (const axis of axes) {
      const known = all.find((a) => a.name === axis.name)
      if (known === undefined) all.push(axis)
      else if (known.size !== axis.size) {
        refuse(new AxisMismatch({ operation, axis: axis.name, left: known.size, right: axis.size }))
      }
    }
  }
  return all
}

/** Sorted by name: an order that depends on no memory layout. */
export const byName = (axes: Axes): Axes => axes.toSorted((a, b) => (a.name < b.name ? -1 : 1))

/** Same names and sizes, in any order. */
export const equal = (a: Axes, b: Axes): boolean =>
  a.length === b.length &&
  a.every((x) => b.some((y) => y.name === x.name && y.size === x.size && y.logical === x.logical))

export const print = (axes: Axes): string =>
  `[${axes.map((a) => `${a.name}=${a.size}${a.logical === a.size ? "" : `(${a.logical})`}`).join(", ")}]`
