/** A grid of ranks with named axes. Rank numbers count along the last axis fastest. */

/** Mesh axes with their device counts, outermost first; empty for a single device. */
export type Mesh = ReadonlyArray<readonly [meshAxis: string, count: number]>

export const single: Mesh = []

/** Number of ranks. */
export const rankCount = (mesh: Mesh): number => mesh.reduce((n, [, count]) => n * count, 1)

export const has = (mesh: Mesh, meshAxis: string): boolean => mesh.some(([name]) => name === meshAxis)

/** Ranks along one axis; 1 for an axis that the mesh lacks. */
export const countOf = (mesh: Mesh, meshAxis: string): number => mesh.find(([name]) => name === meshAxis)?.[1] ?? 1

/** Where a rank stands along one axis. */
export const coordinate = (mesh: Mesh, rank: number, meshAxis: string): number => {
  let rest = rank
  for (let i = mesh.length - 1; i >= 0; i--) {
    const [name, count] = mesh[i]!
    if (name === meshAxis) return rest % count
    rest = Math.floor(rest / count)
  }
  return 0
}

/** The ranks that differ from `rank` along this axis only, itself among them, by coordinate. */
export const peers = (mesh: Mesh, rank: number, meshAxis: string): ReadonlyArray<number> => {
  const at = mesh.findIndex(([name]) => name === meshAxis)
  if (at < 0) return [rank]
  const stride = mesh.slice(at + 1).reduce((n, [, count]) => n * count, 1)
  const first = rank - coordinate(mesh, rank, meshAxis) * stride
  return Array.from({ length: mesh[at]![1] }, (_, i) => first + i * stride)
}

/** `data=4, tensor=2`; "one device" for the empty mesh. */
export const print = (mesh: Mesh): string =>
  mesh.length === 0 ? "one device" : mesh.map(([name, count]) => `${name}=${count}`).join(", ")
