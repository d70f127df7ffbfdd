// Packed weights: what a linear layer's `[N, K]` weights become for the kernels, the same for every instruction set.
//
//     float32    [ceil(N / 16), K, 16]    16 outputs (a panel) lie beside each other for each input; padded with zeros
//
// Packed by serving/kernels/linear/panels.py at export, so that nothing is repacked where the model is loaded.
#pragma once

#include <cstdint>

namespace marquee {

constexpr int64_t kPanel = 16;

namespace {  // so that files of different instruction sets share no function

inline constexpr int64_t num_panels(int64_t N) { return (N + kPanel - 1) / kPanel; }

// Row stride in floats for scratch of width K: never a multiple of 1 kB, where the rows of a tile would share the same
// few sets of the first cache (measured: 163 against 178 GFLOP/s at K = 1024).
inline constexpr int64_t scratch_stride(int64_t K) { return num_panels(K) * kPanel + kPanel; }

}  // namespace
}  // namespace marquee
