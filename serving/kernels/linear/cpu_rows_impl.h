// Included after `#pragma GCC target` and MARQUEE_LANES, see lanes_impl.h.
#pragma once

#include "linear/cpu_rows.h"
#include "linear/rows_impl.h"

namespace marquee::linear {
namespace {

// The first `count` lanes. Not inlined: lanes chosen at run time would keep every tile's sums in memory.
__attribute__((noinline)) void store_some(float* to, const float* bias, int64_t count, Vector values) {
  float lanes[kLanes];
  store(lanes, values);
  for (int64_t lane = 0; lane < count; ++lane) {
    to[lane] = lanes[lane] + (bias == nullptr ? 0.0f : bias[lane]);
  }
}

inline void rows(const Operands& operands, Block block, uint8_t* scratch) {
  const int64_t K = operands.weights.num_inputs, N = operands.weights.num_outputs;
  float scales[kTile];
  const Activations x{operands.x + block.begin * K, K, block.end - block.begin, scratch, scales};
  const auto out = [&](int64_t row, int64_t column, Vector values) {
    float* to = operands.out + (block.begin + row) * N + column;
    const float* bias = operands.bias == nullptr ? nullptr : operands.bias + column;
    if (column + kLanes <= N) {
      store(to, bias == nullptr ? values : values + load(bias));
    } else {
      store_some(to, bias, N - column, values);
    }
  };
  prepare(x, operands.weights);
  multiply(x, operands.weights, block.first_panel, block.last_panel, out);
}

}  // namespace
}  // namespace marquee::linear
