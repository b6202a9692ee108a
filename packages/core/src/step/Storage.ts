/** How the tensors that live from step to step are stored, and the way between that and what they mean: one array for each declared parameter. */
import * as Axis from "../Axis.ts"
import type { Unit } from "../Flatten.ts"
import { apart, partAxis } from "../Flatten.ts"
import type { HostArray } from "../HostArray.ts"
import * as Host from "../HostArray.ts"
import * as Module from "../Module.ts"
import type { TensorType } from "../Node.ts"
import * as Optimizer from "../Optimizer.ts"
import { packP, unpackP } from "../primitives/pack.ts"

/** One tensor that lives from step to step, by its name in checkpoints. */
export interface Held {
  readonly kind: "parameter" | "optimizer" | "ema"
  /** Path of the leaf, for optimizer state followed by the slot. */
  readonly name: string
  readonly type: TensorType
}

export interface Storage {
  /** As declared. */
  readonly declared: Module.ParamTree
  /** As declared, but padded axes are longer. */
  readonly padded: Module.ParamTree
  /** As stored: padded, flattened parameters as units. */
  readonly stored: Module.ParamTree
  /** What the optimizer sees of stored leaves. */
  readonly optimizer: Optimizer.Optimizer
  readonly units: ReadonlyArray<Unit> | null
  /** What lives, as declared. */
  readonly logical: ReadonlyArray<Held>
  /** What lives, as stored, in the order of a step's inputs. */
  readonly physical: ReadonlyArray<Held>
}

/** Everything that lives, in the order of a step's inputs: parameters, state, averages. */
export const heldOf = (params: Module.ParamTree, optimizer: Optimizer.Optimizer): ReadonlyArray<Held> => {
  const trained = Optimizer.trained(optimizer, params)
  return [
    ...Module.leaves(params).map(({ param, path }): Held => ({
      kind: "parameter",
      name: path,
      type: { axes: param.axes, dtype: optimizer.stored }
    })),
    ...trained.flatMap((leaf) =>
      Object.entries(optimizer.rule.state(leaf)).map(([slot, { axes, dtype }]): Held => ({
        kind: "optimizer",
        name: `${leaf.path}/${slot}`,
        type: { axes, dtype }
      }))
    ),
    ...(optimizer.ema === null
      ? []
      : trained.map(({ param, path }): Held => ({
          kind: "ema",
          name: path,
          type: { axes: param.axes, dtype: optimizer.stored }
        })))
  ]
}

export const make = (
  trees: Pick<Storage, "declared" | "padded" | "stored">,
  optimizers: { readonly declared: Optimizer.Optimizer; readonly stored: Optimizer.Optimizer },
  units: ReadonlyArray<Unit> | null
): Storage => ({
  ...trees,
  optimizer: optimizers.stored,
  units,
  logical: heldOf(trees.declared, optimizers.declared),
  physical: heldOf(trees.stored, optimizers.stored)
})

/** Zeros behind what is meant, where a tensor is stored longer. */
export const pad = (x: HostArray, type: TensorType): HostArray => {
  const own = Host.reorder(x, type.axes)
  if (type.axes.every((a, i) => a.size === own.axes[i]!.size)) return { ...own, axes: type.axes }
  const data = new Float64Array(Axis.count(type.axes))
  const to = Host.offsets(type.axes, own.axes)
  for (let k = 0; k < to.length; k++) data[to[k]!] = own.data[k]!
  return { axes: type.axes, dtype: x.dtype, data }
}

/** What is meant of an array. */
export const cut = (x: HostArray, type: TensorType): HostArray => {
  const own = Host.reorder(x, type.axes)
  if (type.axes.every((a, i) => a.size === own.axes[i]!.size)) return own
  const data = Float64Array.from(Host.offsets(own.axes, type.axes), (o) => own.data[o]!)
  return { axes: type.axes, dtype: x.dtype, data }
}

/** From arrays as declared to arrays as stored, both in the order of what lives. */
export const store = (storage: Storage, arrays: ReadonlyArray<HostArray>): ReadonlyArray<HostArray> => {
  const { logical, physical, units } = storage
  if (units === null) return physical.map((h, i) => pad(arrays[i]!, h.type))
  const byName = new Map(logical.map((h, i) => [`${h.kind} ${h.name}`, arrays[i]!]))
  const leaves = Module.leaves(storage.padded)
  return physical.map(({ kind, name, type }) => {
    const { slot, unit } = ofUnit(units, kind, name)
    const members = unit.leaves.map((i, k) => {
      const declared = byName.get(`${kind} ${leaves[i]!.path}${slot}`)!
      const x = pad(declared, { axes: leaves[i]!.param.axes, dtype: declared.dtype })
      return { ...x, axes: apart(x.axes, unit.split?.[k]?.name, partsOf(unit)) }
    })
    return evaluate(packP, members, unit.params, [type])[0]!
  })
}

/** From arrays as stored to arrays as declared, both in the order of what lives. */
export const load = (storage: Storage, arrays: ReadonlyArray<HostArray>): ReadonlyArray<HostArray> => {
  const { logical, physical, units } = storage
  if (units === null) return logical.map((h, i) => cut(arrays[i]!, h.type))
  const leaves = Module.leaves(storage.padded)
  const byName = new Map<string, HostArray>()
  physical.forEach(({ kind, name, type }, k) => {
    const { slot, unit } = ofUnit(units, kind, name)
    const types = unit.params.members.map((m): TensorType => ({ axes: [...unit.rest, ...m.axes], dtype: type.dtype }))
    const parts = evaluate(unpackP, [arrays[k]!], unit.params, types)
    unit.leaves.forEach((i, j) => {
      const { axes } = leaves[i]!.param
      const inOrder = Host.reorder(parts[j]!, apart(axes, unit.split?.[j]?.name, partsOf(unit)))
      byName.set(`${kind} ${leaves[i]!.path}${slot}`, { ...inOrder, axes })
    })
  })
  return logical.map((h) => cut(byName.get(`${h.kind} ${h.name}`)!, h.type))
}

const partsOf = (unit: Unit): number => Axis.find(unit.rest, partAxis)?.size ?? 1

/** The unit of a stored tensor; of optimizer state the slot is the last part of the name. */
const ofUnit = (units: ReadonlyArray<Unit>, kind: Held["kind"], name: string) => {
  const unit = units.find((u) => (kind === "optimizer" ? name.startsWith(`${u.path}/`) : name === u.path))
  if (unit === undefined) throw new Error(`${name} belongs to no unit`)
  return { unit, slot: name.slice(unit.path.length) }
}

const evaluate = (
  primitive: typeof packP | typeof unpackP,
  xs: ReadonlyArray<HostArray>,
  params: Unit["params"],
  types: ReadonlyArray<TensorType>
): ReadonlyArray<HostArray> => {
  const { meaning } = primitive
  if (meaning.kind !== "core") throw new Error(`${primitive.name} has no loops of its own`)
  return meaning.evaluate(xs, params, types)
}
