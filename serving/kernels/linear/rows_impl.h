// Rows times packed weights of either kind, by the best instructions there are: what operators call. Included as
// panels_impl.h.
#pragma once

#include "linear/amx_impl.h"
#include "linear/int8_impl.h"
#include "linear/panels_impl.h"
#include "linear/split_impl.h"

namespace marquee {
namespace {

// Whether the rows' products with these weights are split_impl.h's, which takes no layer without inputs or outputs.
inline bool is_split(const PackedWeights& weights) {
  return kLanes == 16 && weights.scales == nullptr && weights.extra == Extra::amx && weights.num_inputs > 0 &&
         weights.num_outputs > 0;
}

// Before the first `multiply` of these rows and such weights: int8 ones need them quantised, AMX split.
inline void prepare(const Activations& a, const PackedWeights& weights) {
  if (weights.scales != nullptr) {
    quantise_rows(a.rows, a.stride, a.count, weights.num_inputs, a.bytes, a.scales);
    return;
  }
#if MARQUEE_LANES == 16
  if (is_split(weights)) {
    split_rows(a.rows, a.stride, a.count, weights.num_inputs, a.bytes);
  }
#endif
}

template <class Out>
inline void multiply_int8(const Activations& a, const PackedWeights& weights, int64_t first, int64_t last,
                          const Out& out) {
  const float* compensation = weights.scales + num_panels(weights.num_outputs) * kPanel;
  const auto scaled = [&](int64_t row, int64_t column, IntVector sums) __attribute__((always_inline)) {
    const IntVector exact = sums - __builtin_convertvector(load(compensation + column), IntVector);
    out(row, column, __builtin_convertvector(exact, Vector) * splat(a.scales[row]) * load(weights.scales + column));
  };
#if MARQUEE_LANES == 16
  if (weights.extra == Extra::amx && weights.num_inputs % kTileLine == 0) {
    const auto* packed = static_cast<const uint8_t*>(weights.data);
    multiply_bytes(a.bytes, a.count, packed, weights.num_inputs, first, last, scaled);
    return;
  }
  if (weights.extra != Extra::none) {
    multiply_units<Int8Vnni>(a.bytes, a.count, weights, first, last, scaled);
    return;
  }
#endif
  multiply_units<Int8>(a.bytes, a.count, weights, first, last, scaled);
}

// out(row, column, values) for prepared rows times panels [first, last) of `weights`, see multiply of float32.
template <class Out>
inline void multiply(const Activations& a, const PackedWeights& weights, int64_t first, int64_t last, const Out& out) {
  if (weights.scales != nullptr) {
    multiply_int8(a, weights, first, last, out);
    return;
  }
#if MARQUEE_LANES == 16
  if (is_split(weights)) {
    multiply_split(a, weights, first, last, out);
    return;
  }
#endif
  multiply(a.rows, a.stride, a.count, static_cast<const float*>(weights.data), weights.num_inputs, first, last, out);
}

}  // namespace
}  // namespace marquee
