// Rows times packed weights as operators compute them on AVX-512 and AMX, by itself: for test_amx.py, in memory that
// ends at a page which nobody may touch, with more rows and other panels than an operator hands over.
#pragma GCC target("avx512f,avx512bw,fma")
#define MARQUEE_LANES 16
#include "linear/rows_impl.h"

using namespace marquee;

extern "C" int64_t num_prepared_bytes(int64_t rows, int64_t K) { return prepared_bytes(rows, K); }

// out [rows, N padded to 16]: panels [first, last) of it are written. `scales`, of int8 weights, or null.
extern "C" void multiply_rows(const float* x, int64_t stride, int64_t rows, int64_t K, const void* packed,
                              const float* scales, int64_t N, int64_t first, int64_t last, int32_t extra,
                              uint8_t* bytes, float* row_scales, float* out) {
  const Activations a{x, stride, rows, bytes, row_scales};
  const PackedWeights weights{packed, scales, K, N, static_cast<Extra>(extra)};
  const int64_t width = num_panels(N) * kPanel;
  prepare(a, weights);
  multiply(a, weights, first, last,
           [&](int64_t row, int64_t column, Vector sums) { store(out + row * width + column, sums); });
}
