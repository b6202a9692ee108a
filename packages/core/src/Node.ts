import type * as Result from "effect/Result"
import * as Axis from "./Axis.ts"
import type { DType, Kind } from "./DType.ts"
import type { HostArray } from "./HostArray.ts"

/** Named axes in memory order, and a storage type. Equality ignores the order. */
export interface TensorType {
  readonly axes: Axis.Axes
  readonly dtype: DType
}

/**
 * Which rule table of a strategy decides the layout of a tensor. Models never set it; the step builder does. "gathered" stands in programs of one
 * rank only: a parameter that was brought together from its shards.
 */
export type Role = "compute" | "parameter" | "gradient" | "optimizer" | "gathered"

export const TensorId: unique symbol = Symbol.for("@tessera/core/Tensor")

/** An immutable expression node: output `index` of `equation`, or a free input when `equation` is null. */
export interface AnyTensor {
  readonly [TensorId]: true
  readonly type: TensorType
  readonly role: Role
  readonly equation: Equation | null
  readonly index: number
}

declare const phantom: unique symbol

/** A tensor whose set of axis names is `A`. Invariant in `A` and `K`; the order of axes is memory layout and not part of the type. */
export interface Tensor<A extends string, K extends Kind = "float"> extends AnyTensor {
  readonly [phantom]?: { readonly axes: (_: A) => A; readonly kind: (_: K) => K }
}

/** One use of a primitive. */
export interface Equation {
  readonly primitive: AnyPrimitive
  readonly inputs: ReadonlyArray<AnyTensor>
  readonly params: any
  readonly outputs: ReadonlyArray<AnyTensor>
}

/** A cut of the expression graph: everything between `inputs` (any tensors at all) and `outputs`, in dependency order. */
export interface Body {
  readonly inputs: ReadonlyArray<AnyTensor>
  readonly outputs: ReadonlyArray<AnyTensor>
  readonly equations: ReadonlyArray<Equation>
}

/** One array per simulated rank. A single device is one rank. */
export type Lockstep = ReadonlyArray<HostArray>

/** Cotangents of the outputs (null where none flows) to cotangents of the inputs. */
export type Pullback = (cotangents: ReadonlyArray<AnyTensor | null>) => ReadonlyArray<AnyTensor | null>

/** Work of one equation. Contractions are counted apart, because only they count as model FLOPs; wire bytes go by mesh axis. */
export interface Cost {
  readonly contractionFlops: number
  readonly otherFlops: number
  readonly bytesRead: number
  readonly bytesWritten: number
  readonly wireBytes: Readonly<Record<string, number>>
}

export type Meaning<P> =
  /** Plain loops over doubles. */
  | {
      readonly kind: "core"
      readonly evaluate: (
        xs: ReadonlyArray<HostArray>,
        params: P,
        types: ReadonlyArray<TensorType>
      ) => ReadonlyArray<HostArray>
    }
  /** Smaller primitives; a kernel is an optional speed-up. */
  | {
      readonly kind: "composite"
      readonly decompose: (xs: ReadonlyArray<AnyTensor>, params: P) => ReadonlyArray<AnyTensor>
    }
  /**
   * One mesh axis of ranks does it together. `group` holds the operands of every rank along the axis, by coordinate; `own` is the coordinate of
   * the rank whose results are asked for.
   */
  | {
      readonly kind: "collective"
      readonly evaluate: (
        group: ReadonlyArray<ReadonlyArray<HostArray>>,
        own: number,
        params: P
      ) => ReadonlyArray<HostArray>
      /** Bytes that each rank sends. */
      readonly wire: (inputs: ReadonlyArray<TensorType>, outputs: ReadonlyArray<TensorType>, params: P) => number
    }
  /** Contains programs. `bodies` are what passes walk; `withBodies` puts rewritten ones back. */
  | {
      readonly kind: "region"
      readonly evaluate: (
        xs: ReadonlyArray<Lockstep>,
        params: P,
        call: (body: Body, xs: ReadonlyArray<Lockstep>) => ReadonlyArray<Lockstep>,
        types: ReadonlyArray<TensorType>
      ) => ReadonlyArray<Lockstep>
      readonly bodies: (params: P) => ReadonlyArray<Body>
      readonly withBodies: (params: P, bodies: ReadonlyArray<Body>) => P
    }

/** How an operation behaves when one of its axes is split; all that is not said here follows from axis names. */
export interface ByName<P> {
  readonly kind: "byName"
  /** What a split axis leaves behind when it is summed over. */
  readonly reduces?: "sum" | "max"
  /** Groups of inputs that may owe a sum together; "together" where only all of them may. */
  readonly linear?: ReadonlyArray<ReadonlyArray<number>> | "together"
  /** Axes that must not be split. */
  readonly whole?: (params: P) => ReadonlyArray<string>
  /** Output axis to input axis, where the name changes. */
  readonly same?: (params: P) => Readonly<Record<string, string>>
  /** May create an axis that no input has. */
  readonly spreads?: true
  /** Parameters that contain sizes. */
  readonly localize?: (params: P, count: (axis: string) => number) => P
}

export type PartitionRule<P> =
  | ByName<P>
  /** Composites: the ways of the decomposition that move nothing. Where an operand is split along one of `opens`, the decomposition runs instead. */
  | { readonly kind: "derived"; readonly opens?: (params: P) => ReadonlyArray<string> }
  | { readonly kind: "region" }
  /** Stands in programs of one rank, which are not partitioned again. */
  | { readonly kind: "local" }

/** Everything known about one operation, in one record. */
export interface Primitive<Name extends string, P> {
  readonly name: Name
  readonly type: (inputs: ReadonlyArray<TensorType>, params: P) => ReadonlyArray<TensorType>
  readonly meaning: Meaning<P>
  /**
   * Short form: cotangents of the outputs to cotangents of the inputs. Long form `differentiate`, where the forward changes too.
   * "decompose" takes the derivative of the decomposition, "none" has no derivative.
   */
  readonly vjp:
    | {
        readonly kind: "short"
        readonly pullback: (
          cotangents: ReadonlyArray<AnyTensor>,
          inputs: ReadonlyArray<AnyTensor>,
          outputs: ReadonlyArray<AnyTensor>,
          params: P
        ) => ReadonlyArray<AnyTensor | null>
      }
    | {
        readonly kind: "long"
        readonly differentiate: (
          inputs: ReadonlyArray<AnyTensor>,
          params: P
        ) => { readonly outputs: ReadonlyArray<AnyTensor>; readonly pullback: Pullback }
      }
    | { readonly kind: "decompose" }
    | { readonly kind: "none" }
  readonly partition: PartitionRule<P>
  /** FLOPs beyond moving bytes; bytes are those of inputs and outputs unless said otherwise. */
  readonly flops: (
    inputs: ReadonlyArray<TensorType>,
    outputs: ReadonlyArray<TensorType>,
    params: P
  ) => { readonly contraction: number; readonly other: number }
  /** Which rule of a Precision policy applies. `exact` is never touched (indices, masks, random bits). */
  readonly precision: "matmul" | "reduction" | "norm" | "softmax" | "loss" | "pointwise" | "exact"
  /** Of the classes norm, softmax and loss: the parameters with which it calculates in a type, or why it cannot. Without, in f32 alone. */
  readonly calculates?: (params: P, dtype: DType, inputs: ReadonlyArray<TensorType>) => Result.Result<P, string>
  /** cheap: rebuilt in the backward pass, never saved as a residual. */
  readonly recompute: "cheap" | "expensive"
}

export type AnyPrimitive = Primitive<string, any>

export const isTensor = (x: unknown): x is AnyTensor => typeof x === "object" && x !== null && TensorId in x

/** A free input. */
export const input = (type: TensorType, role: Role = "compute"): AnyTensor => ({
  [TensorId]: true,
  type,
  role,
  equation: null,
  index: 0
})

/** Uses a primitive on exactly these inputs. */
export const build = (
  primitive: AnyPrimitive,
  inputs: ReadonlyArray<AnyTensor>,
  params: unknown,
  roles: ReadonlyArray<Role> | Role
): ReadonlyArray<AnyTensor> => {
  const outputs: Array<AnyTensor> = []
  const equation: Equation = { primitive, inputs, params, outputs }
  primitive
    .type(
      inputs.map((x) => x.type),
      params
    )
    .forEach((type, index) =>
      outputs.push({ [TensorId]: true, type, role: typeof roles === "string" ? roles : roles[index]!, equation, index })
    )
  return outputs
}

/** Number of stored bytes of a tensor. */
export const bytesOf = (type: TensorType): number =>
  Axis.count(type.axes) *
  (type.dtype === "f32" || type.dtype === "i32" || type.dtype === "u32"
    ? 4
    : type.dtype === "bf16" || type.dtype === "f16"
      ? 2
      : 1)
