// The whole interface between TypeScript and the native library: one plan, one call per step.
//
// A plan is an array of int64 words, a sequence of instructions:
//   [opcode, words, equation, ...arguments]     `words` counts the whole instruction; `equation` is for profiles and errors
// A memory operand is four words: [binding, offset, dtype, 0]: element 0 stands `offset` BYTES after bindings[binding].
// Binding 0 is the arena of the plan; the others are inputs, outputs and constants given with each call.
// An operand that the flags or sizes leave unused is still four words, with any contents. Ranks are 16 at most.
// Sizes and strides are in ELEMENTS. A float immediate is the bit pattern of a double in one word.
// Every instruction is a barrier: the next one sees all its writes. Results never depend on the number of threads.
// Any size may be 0 (nothing happens, except that reductions still write their identity).
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum TsDType { TS_F32 = 0, TS_BF16 = 1, TS_F16 = 2, TS_I32 = 3, TS_U32 = 4, TS_U8 = 5, TS_BOOL = 6 /* one byte, 0 or 1 */ };

enum TsOpcode {
  // Fused elementwise work over a loop nest, a small register program run on blocks that stay in cache.
  // [rank, inputs, outputs, code, sizes[rank],
  //  for each operand, inputs first: operand(4), strides[rank],
  //  for each instruction of the program (`code` of them): vmop, dst, a, b, c, immediate]
  // Registers hold 32-bit lanes (float, int32, uint32; bool is 0/1 as int32). f32, bf16, f16 are float registers; i32, u8, bool int32;
  // u32 uint32. Inputs are loaded into registers 0..inputs-1 before the program; results are stored from the registers named by
  // TS_VM_STORE (a = register, immediate = output number). An output may be the same memory as an input when their strides are equal.
  TS_POINTWISE = 1,
  // [kind, rank, sizes[rank], x(4), xStrides[rank], y(4) , yStrides[rank]]  A stride 0 in y marks a reduced axis.
  // kind: 0 sum, 1 max, 2 argmax (first index of the largest, NaN first of all; exactly one reduced axis; y is i32). Sums of floats
  // accumulate in float pairwise or better (error as for f32 pairwise summation), max propagates NaN, identity is 0 or -infinity.
  TS_REDUCE = 2,
  // [kind, count, x(4), xStride, y(4), yStride, out(4)]  out[0] = sum over i of x[i*xStride]*y[i*yStride], in double. kind: 0.
  TS_DOT = 3,
  // C = epilogue(sum over K segments of A_s * B_s), one product with several row-major-ish matrices.
  // [batchRank(0..4), batchSizes[batchRank], M, kSegments, nSegments, precision, accumulate, activation, alpha(double), flags,
  //  bias(4), biasStride,
  //  for each k segment: K, A(4), aRow, aCol, aBatch[batchRank]
  //  for each k segment, for each n segment: B(4), bRow, bCol, bBatch[batchRank]
  //  for each n segment: N, C(4), cRow, cCol, cBatch[batchRank], aux(4), auxRow, residual(4), residualRow]
  // C_n[m,n] = act(alpha * sum_s sum_k A_s[m,k] B_sn[k,n] + bias_n[n]) + residual[m,n]  (+ C before, when accumulate).
  // At least one stride of A and of B is 1 (or the size of that dimension is 1); otherwise the caller copies first. The same for C: cCol 1,
  // or cRow 1 (the library then swaps the operands). precision: 0 float products, 1 bf16 products with float accumulation (float operands
  // rounded to nearest even while packed). Operands are f32, bf16 or f16, C f32, bf16 or f16.
  // activation: 0 none, 1 gelu erf, 2 gelu tanh, 3 quick gelu, 4 relu. flags bit 0: bias present (bias of segment n starts at the sum of
  // the N before it, times biasStride); bit 1: aux present (the value before the activation, with bias; dtype of its operand, column
  // stride 1); bit 2: residual present (column stride 1). With cRow 1 and cCol != 1, none of the flags is used. Batch entries of aux and of
  // residual follow each other, M rows each, in the order of batchSizes (the last varies fastest). C may be the residual itself.
  TS_GEMM = 4,
  // Exact attention without the score matrix. Head h of batch b: q at b*qBatch + h*qHead, row i at i*qSeq, depth contiguous; keys and values
  // of query head h are those of head h / (heads / keyHeads).
  // [batch, heads, keyHeads, queries, keys, depth, valueDepth, scale(double), mask, maskOffset, precision, dropout rate(double),
  //  q(4), qBatch, qSeq, qHead, k(4), kBatch, kSeq, kHead, v(4), vBatch, vSeq, vHead,
  //  out(4), oBatch, oSeq, oHead, lse(4), lseBatch, lseHead, lseSeq (f32),
  //  querySegments(4), querySegmentBatch, querySegmentSeq, keySegments(4), keySegmentBatch, keySegmentSeq (i32; used when mask bit 1),
  //  lengths(4), lengthStride (i32 per batch: keys at or beyond it are hidden; used when mask bit 2),
  //  key(4) (u32, two words), counter(4) (u32), counterBatch; used when rate > 0,
  //  queryAt(4), keyAt(4) (i32; used when mask bit 3: position of the first query and of the first key, others follow; else both 0),
  //  headAt(4), headAtStride (u32, one a head), allQueries, allKeys; used when rate > 0]
  // mask: bit 0 causal (position i sees position j when j <= i + maskOffset), bit 1 segments must be equal, bit 2 lengths (of positions).
  // Dropout keeps the probability of positions i and j in example b and head h when
  // uniform(threefry(key[0], key[1], counter[b*counterBatch], (headAt[h]*allQueries + i)*allKeys + j)) >= rate, scaled by 1/(1-rate); uniform(bits) = (bits >> 8) * 2^-24. A row that sees no key gives out 0 and lse -infinity.
  TS_ATTENTION = 5,
  // The same head, then: dOut(4), dOutBatch, dOutSeq, dOutHead, dq(4) + 3 strides, dk(4) + 3 strides, dv(4) + 3 strides.
  // `out` and `lse` are inputs here. dk and dv are summed over the query heads of a group, in a fixed order.
  TS_ATTENTION_BACKWARD = 6,
  // Rows of `width` contiguous elements. y = (x - mean) * rstd * gamma + beta
  // [kind(0 layer, 1 rms), rows, width, epsilon(double), x(4), xRow, gamma(4), beta(4) (ignored for rms), y(4), yRow, mean(4), rstd(4), flags]
  // mean and rstd are f32, one a row, contiguous (mean unused for rms). flags bit 0: gamma present, bit 1: beta present.
  TS_NORM = 7,
  // [kind, rows, width, epsilon(double), x(4), xRow, gamma(4), mean(4), rstd(4), dy(4), dyRow, dx(4), dxRow, dgamma(4), dbeta(4), flags]
  // flags: bit 0 gamma present, bit 1 beta present (write dbeta), bit 2 add to what dx holds. dgamma, dbeta are written (not added), any float dtype.
  TS_NORM_BACKWARD = 8,
  // Softmax cross-entropy. [rows, classes, kind, smoothing(double), logits(4), row, targets(4), targetRow, loss(4), lse(4)]
  // kind 0: targets are i32 labels, one a row (targetRow = stride between rows); a label outside 0..classes-1 gives loss 0. kind 1: targets
  // are a float distribution per row, contiguous. loss = sum_c t'_c * (lse - logit_c) with t' = (1-smoothing)*t + smoothing/classes.
  // loss and lse are f32, one a row, contiguous.
  TS_CROSS_ENTROPY = 9,
  // [rows, classes, kind, smoothing(double), logits(4), row, targets(4), targetRow, lse(4), dloss(4) (f32 a row, stride dlossStride), dlossStride,
  //  dlogits(4), dRow]   dlogit_c = dloss * (sum(t') * softmax_c - t'_c); an ignored label gives zeros.
  TS_CROSS_ENTROPY_BACKWARD = 10,
  // out[..., ids[i], ...]: [rank, sizes[rank], width, table(4), tableStrides[rank], tableIdStride, ids(4), idStrides[rank], first, rows,
  //  out(4), outStrides[rank]]  out[n, 0..width) = table[n . tableStrides + (ids[n] - first) * tableIdStride, 0..width), zeros when ids[n] - first is not
  // in 0..rows-1. The width is contiguous in table and out.
  TS_GATHER = 11,
  // The transpose: adds x rows into out (which the instruction zeroes first: outZero elements, contiguous from `out`), in a fixed order.
  // [rank, sizes[rank], width, x(4), xStrides[rank], ids(4), idStrides[rank], first, rows, out(4), outStrides[rank], outIdStride, outZero]
  TS_SCATTER_ADD = 12,
  // [bytes, to(4), from(4)] plain copy; [bytes, to(4)] fill with zero bytes.
  TS_COPY_BYTES = 13,
  TS_ZERO = 14,
  // Fused AdamW, decoupled decay. [count, param(4), gradient(4), m(4), v(4), param out(4), m out(4), v out(4), scalars(4), b1, b2, eps, decay (doubles)]
  // scalars (f32): [learningRate, 1 - b1^t, 1 - b2^t, gradientScale]. m' = b1 m + (1-b1) g; v' = b2 v + (1-b2) g^2;
  // p' = p (1 - lr*decay) - lr * (m'/c1) / (sqrt(v'/c2) + eps). All contiguous; outputs may be the inputs.
  TS_ADAMW = 15,
  // Sum along one axis, running. [rank, sizes[rank], axis, x(4), strides[rank], y(4), yStrides[rank]]
  TS_CUMSUM = 16
};

enum TsVmOp {
  TS_VM_STORE = 0, // register a to output `immediate`
  TS_VM_CONST_F = 1, // dst = (float) immediate (double bits)
  TS_VM_CONST_I = 2, // dst = low 32 bits of immediate
  TS_VM_IOTA = 3, // dst (int32) = start + step * index along loop axis a; immediate = start + (step << 32), both int32
  // float
  TS_VM_ADD = 10, TS_VM_SUB, TS_VM_MUL, TS_VM_DIV, TS_VM_MAX /* NaN wins */, TS_VM_MIN /* NaN wins */, TS_VM_NEG, TS_VM_ABS,
  TS_VM_EXP, TS_VM_EXPM1, TS_VM_LOG, TS_VM_TANH, TS_VM_ERF, TS_VM_SQRT, TS_VM_SIN, TS_VM_COS, TS_VM_FLOOR, TS_VM_SIGN, TS_VM_SIGMOID,
  TS_VM_GELU /* immediate kind 1..3 */, TS_VM_GELU_GRAD /* derivative, immediate kind 1..3 */, TS_VM_FMA /* a*b+c, one rounding or two */,
  // int32 (add, sub, mul wrap and serve uint32 too)
  TS_VM_IADD = 40, TS_VM_ISUB, TS_VM_IMUL, TS_VM_IDIV /* floor; x/0 = 0 */, TS_VM_IMAX, TS_VM_IMIN, TS_VM_UDIV, TS_VM_UMAX, TS_VM_UMIN,
  TS_VM_INEG, TS_VM_IABS, TS_VM_ISIGN,
  // comparisons give 0 or 1
  TS_VM_LESS_F = 60, TS_VM_LESS_I, TS_VM_LESS_U, TS_VM_EQUAL_F, TS_VM_EQUAL_I, TS_VM_ISFINITE,
  TS_VM_SELECT = 70, // dst = a (bool) ? b : c, any lane type
  TS_VM_AND, TS_VM_OR, TS_VM_NOT, // on 0/1
  // conversions: float to int truncates toward zero and saturates (NaN to 0); int to float rounds to nearest even
  TS_VM_F2I = 80, TS_VM_F2U, TS_VM_I2F, TS_VM_U2F, TS_VM_F2B /* != 0 */, TS_VM_I2B, TS_VM_ROUND_BF16 /* float rounded to bf16 */, TS_VM_ROUND_F16,
  TS_VM_F2U8 /* saturates to 0..255 */, TS_VM_I2U8 /* wraps */,
  // dst (uint32) = first word of Threefry-2x32 with 20 rounds (Salmon et al. 2011), key (registers a, b),
  // counter (register c, the register whose number is the immediate)
  TS_VM_THREEFRY = 90
};

int32_t ts_abi_version(void);        // 1
const char *ts_isa(void);            // "avx512bf16", "avx512", "avx2", "neon", "baseline": what this library was compiled for
// A pool of `threads` threads, the caller being one. NULL when threads cannot be started. Calls on one pool take turns (a lock inside).
void *ts_pool_create(int32_t threads);
void ts_pool_destroy(void *pool);
// Memory from an allocator value. kind: 0 private (huge pages asked for), 1 shared between processes (one
// file of memory of this process, which other ranks map), 2 pinned (mlock; falls to an error),
// 3 guarded (an inaccessible page right behind the last byte, contents poisoned with signalling NaNs). NULL on failure.
void *ts_memory_create(uint64_t bytes, int32_t kind);
void ts_memory_destroy(void *memory, uint64_t bytes, int32_t kind);
// Copies bytes between memory of the library and of the caller.
void ts_memory_copy(void *to, const void *from, uint64_t bytes);
uint64_t ts_memory_live(void);       // bytes now held
uint64_t ts_memory_peak(void);       // the most ever held, since ts_memory_reset_peak
void ts_memory_reset_peak(void);
// Runs a plan. Returns 0, or: 1 cancelled (cancel[0] became nonzero; checked between instructions), 2 unknown opcode or malformed plan,
// 3 out of memory for scratch. error[0] (nullable) receives the equation. profile (nullable): nanoseconds added per equation number.
// hooks: a table of native functions that instructions of collectives call (start and wait); NULL while there are none.
int32_t ts_run(void *pool, const int64_t *plan, uint64_t words, void *const *bindings, uint64_t bindingCount, const int32_t *cancel,
               double *profile, uint64_t profileCount, int64_t *error, const void *hooks);

// Ranks of one machine (local.cpp). `path` names a control file that all ranks open, empty or missing at first. NULL, and the problem in words, when
// this rank cannot join. A rank that does not come within `timeout` seconds ends what waits for it.
void *ts_local_join(const char *path, int32_t rank, int32_t ranks, double timeout, char *problem, uint64_t problemBytes);
// Tells all others that this rank has ended, or failed and why.
void ts_local_leave(void *comm, int32_t failed, const char *detail);
void ts_local_destroy(void *comm);
// Begins [ticket, kind, group, sequence, hash, by, shift, peer, members, spans, own place, member[members],
//  for each span: dtype, elements sent, send address, bytes, receive address, bytes]. Members agree when `hash` is equal; `what` says it in words.
// kind: 0 all-reduce, 1 all-gather, 2 reduce-scatter, 3 all-to-all, 4 permute, 5 barrier, 6 send, 7 receive (hash: of the tag). by: 0 sum, 1 max; of a barrier a
// flag, and its text is "1" when any brings 1.
// Every rank counts the collectives of a group by itself, from 0. Gives 0 when the words are malformed. Memory must stay until it has ended.
int32_t ts_local_start(void *comm, const int64_t *words, uint64_t count, const char *what);
// Ends one as soon as nothing touches its memory.
void ts_local_cancel(void *comm, int64_t ticket);
// Waits for the next that ends; gives its ticket. status: 0 done, 1 timed out (text: ranks), 2 a rank is lost (rank, why), 3 ranks disagree, 4 cancelled,
// 5 the system refused.
int64_t ts_local_next(void *comm, int32_t *status, char *text, uint64_t textBytes);
#ifdef __cplusplus
}
#endif
