// The register program of TS_POINTWISE: one instruction applied to a block of lanes (vm.cpp).
#pragma once
#include <cstdint>

namespace tessera {

struct VmInstruction {
  int op, dst, a, b, c;
  int64_t immediate;
};

// How many of a, b, c and (the fourth) the immediate are registers, or -1 for an unknown operation.
int vmArity(int64_t op);

// Registers of 32-bit lanes. `n` is a multiple of the vector width; lanes behind the real ones hold anything.
// Not for TS_VM_STORE and TS_VM_IOTA, which need to know where the block stands.
void vmRun(const VmInstruction&, int64_t n, float* dst, const float* a, const float* b, const float* c,
           const float* d);

}  // namespace tessera
