// The operands of marquee::decoder_step, as its loops read them. Shapes: T new tokens, B sequences, S stored tokens,
// D model width, H heads, K head width, F feed-forward width, P positions.
#pragma once

#include <cstdint>

#include "linear/panels.h"

namespace marquee::decoder {

struct Layer {
  const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;  // [D]
  PackedWeights project_in, project_out, feed_in, feed_out;
  const float *feed_in_bias, *feed_out_bias;  // [F], [D]
  const float *stored_keys, *stored_values;   // [S, H, K], or null
  float *keys, *values;                       // [T, H, K] of the new tokens, written
};

// Rows of a pass: all new tokens, or each sequence's last. Row r of sequence b is its token first[b] + r - offsets[b].
struct Rows {
  int64_t count;
  const int64_t* offsets;  // [B + 1], rows of each sequence
  const int64_t* first;    // [B], its first row's token, counted from its first new token
  float* x;                // [count, D], the residual stream, in place
  float* queries;          // [count, D], rotated and scaled
};

// What a pass over few rows shares between threads.
struct Shared {
  float* attended;  // [kFewRows, scratch_stride(D)]
  float* hidden;    // [kFewRows, scratch_stride(max(F, 3 D))]
};

struct Step {
  int64_t B, D, H, K, F, num_layers;
  const Layer* layers;
  const float *final_weight, *final_bias, *rotations;  // [D], [D], [P, K]
  const int64_t *offsets, *stored_offsets;             // [B + 1]
  bool branches, last_only;
  int64_t window, num_prefix;  // window 0: a token sees all before it
  Rows all, last;              // `last` is empty unless last_only
  int64_t block_rows, num_blocks;
  int32_t* done;      // [num_blocks], layers whose keys and values a block of `all` has written
  int64_t* counters;  // [2], tasks handed out: of blocks, and of the last layer
  Shared shared;
  float* scratch;  // [threads, scratch_floats]
  int64_t scratch_floats;
};

constexpr float kNormEpsilon = 1e-5f;
// A pass over so few rows is bound by the weights' bytes: each thread takes some columns of all rows.
constexpr int64_t kFewRows = 16;
// Else each thread takes some rows, through all of a layer: they stay in its second cache. More than these for one
// pass over the weights bring nothing, fewer leave the loads of weights unpaid.
constexpr int64_t kMostBlockRows = 264;
constexpr int64_t kMostBlockRowsOfAmx = 144;  // in three parts they take half as much again
// Keys whose scores are computed before they are weighed: the scores of a tile of rows stay in the first cache.
constexpr int64_t kChunkKeys = 256;
constexpr int64_t kMostTileRows = 16;  // at least kTileRows of every instruction set

namespace {  // so that files of different instruction sets share no function

inline constexpr int64_t padded(int64_t n) { return num_panels(n) * kPanel; }

// Floats of one thread's scratch, in the order of block_impl.h's Scratch.
inline int64_t hidden_stride(const Step& step) { return scratch_stride(step.F > 3 * step.D ? step.F : 3 * step.D); }
// In whole cache lines of every array: what follows stays aligned (250 tokens: 1.5 % faster).
inline int64_t scratch_rows(const Step& step) {
  return padded(step.block_rows > kFewRows ? step.block_rows : kFewRows);
}
inline int64_t hidden_floats(const Step& step) {  // a whole number of cache lines as well
  const int64_t rows = scratch_rows(step);
  const int64_t plain = rows * hidden_stride(step), split = prepared_bytes(rows, step.F) / 4;
  return plain > split ? plain : split;
}
inline int64_t prepared_floats(const Step& step) {
  return prepared_bytes(scratch_rows(step), step.F > step.D ? step.F : step.D) / 4;
}
inline int64_t scratch_floats(const Step& step) {
  const int64_t rows = scratch_rows(step);
  const int64_t row = scratch_stride(step.D) + 1 + padded(step.K) + 2;
  return rows * row + hidden_floats(step) + prepared_floats(step) + kChunkKeys * step.K +
         kChunkKeys * padded(step.K) + kMostTileRows * scratch_stride(kChunkKeys) + kPanel;
}

}  // namespace

// One thread's share; `thread` of `num_threads`, all of which call it.
using Run = void (*)(const Step&, int64_t thread, int64_t num_threads);

void run_baseline(const Step&, int64_t thread, int64_t num_threads);
void run_avx2(const Step&, int64_t thread, int64_t num_threads);
void run_avx512(const Step&, int64_t thread, int64_t num_threads);

void barrier();  // of the parallel region's threads
// Until *layers is at least `wanted`: another thread is at it.
void wait_for(const int32_t* layers, int32_t wanted);

}  // namespace marquee::decoder
