// Packed weights: what a linear layer's `[N, K]` weights become for the kernels, the same for every instruction set.
//
//     float32    [ceil(N / 16), K, 16]    16 outputs (a panel) lie beside each other for each input; padded with zeros
//     int8       [ceil(N / 16), ceil(K / 4), 16, 4]    the same with four inputs in the place of one
//
// Packed by serving/kernels/linear/panels.py and int8.py at export, so that nothing is repacked where a
// model is loaded.
#pragma once

#include <cstdint>

#include "capability.h"

namespace marquee {

constexpr int64_t kPanel = 16;

namespace {  // so that files of different instruction sets share no function

inline constexpr int64_t num_panels(int64_t N) { return (N + kPanel - 1) / kPanel; }

// Row stride in floats for scratch of width K: never a multiple of 1 kB, where the rows of a tile would share the same
// few sets of the first cache (measured: 163 against 178 GFLOP/s at K = 1024).
inline constexpr int64_t scratch_stride(int64_t K) { return num_panels(K) * kPanel + kPanel; }

inline constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// The same in bytes for rows quantised to bytes.
inline constexpr int64_t byte_stride(int64_t K) { return round_up(K, 64) + 64; }

// Bytes of `rows` rows of K inputs as a product reads them: quantised, or for AMX 32 rows and 32 inputs at a time, in
// three parts of two bytes each.
constexpr int64_t kGroupRows = 32, kStepInputs = 32;
inline constexpr int64_t prepared_bytes(int64_t rows, int64_t K) {
  const int64_t padded_rows = round_up(rows, kGroupRows), split = round_up(K, kStepInputs) * 6;
  return padded_rows * (split > byte_stride(K) ? split : byte_stride(K));
}

}  // namespace

// A linear layer's packed weights, float32 or int8.
struct PackedWeights {
  const void* data;
  const float* scales;  // int8: [2, N padded to panels], of each output, then 128 times the sum of its weights; or null
  int64_t num_inputs, num_outputs;
  Extra extra;  // cpu_extra(), or none where rows aren't prepared
};

// Rows that a linear layer reads, `stride` floats apart, and room for them prepared.
struct Activations {
  const float* rows;
  int64_t stride, count;
  uint8_t* bytes;  // prepared_bytes(count, num_inputs), at a cache line
  float* scales;   // [count]
};

}  // namespace marquee
