/** A program with inputs to run it on. */
import type * as Host from "@tessera/core/HostArray"
import type { Body } from "@tessera/core/Node"

export interface Example {
  readonly name: string
  readonly body: Body
  readonly arrays: ReadonlyArray<Host.HostArray>
}
