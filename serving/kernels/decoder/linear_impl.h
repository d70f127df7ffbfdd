// Every linear layer of the step is one call of `linear` or `add_linear` here, or of block_impl.h's feed_forward.
#pragma once

#include "decoder/step.h"
#include "linear/rows_impl.h"

namespace marquee::decoder {
namespace {

// Panels [first, last) of a layer's outputs.
struct Range {
  int64_t first, last;
};

inline Range all_panels(const PackedWeights& weights) { return {0, num_panels(weights.num_outputs)}; }

// A thread's part of `range`, in whole register tiles.
inline Range share(Range range, int64_t thread, int64_t num_threads) {
  const int64_t tiles = (range.last - range.first + kTilePanels - 1) / kTilePanels;
  const int64_t first = range.first + tiles * thread / num_threads * kTilePanels;
  const int64_t last = range.first + tiles * (thread + 1) / num_threads * kTilePanels;
  return {first, last < range.last ? last : range.last};
}

// out[row, column] of rows times weights, in those panels' columns; those past num_outputs are zeros. Not inlined: where
// AMX doesn't compute it is the one copy of the register tiles, and what surrounds it would take their registers.
__attribute__((noinline)) void linear_prepared(const Activations& a, const PackedWeights& weights, Range panels,
                                               float* out, int64_t stride) {
  multiply(a, weights, panels.first, panels.last,
           [=](int64_t row, int64_t column, Vector sums) { store(out + row * stride + column, sums); });
}

inline void linear(const Activations& a, const PackedWeights& weights, Range panels, float* out, int64_t stride) {
  prepare(a, weights);
  linear_prepared(a, weights, panels, out, stride);
}

// Columns of `panels`, of which there are num_columns in all.
inline Range columns_of(Range panels, int64_t num_columns) {
  const int64_t last = panels.last * kPanel;
  return {panels.first * kPanel, last < num_columns ? last : num_columns};
}

// x[row, column] += values[row, column] (+ bias[column])
inline void add_rows(const float* values, int64_t stride, int64_t count, const float* bias, Range columns, float* x,
                     int64_t x_stride) {
  for (int64_t row = 0; row < count; ++row) {
    const float* from = values + row * stride;
    float* to = x + row * x_stride;
    int64_t column = columns.first;
    for (; column + kLanes <= columns.last; column += kLanes) {
      const Vector value = load(to + column) + load(from + column);
      store(to + column, bias == nullptr ? value : value + load(bias + column));
    }
    for (; column < columns.last; ++column) {
      to[column] = to[column] + from[column] + (bias == nullptr ? 0 : bias[column]);
    }
  }
}

// Whether what is done with the products may be done between them, vector by vector.
inline bool is_overlapped(const PackedWeights& weights) {
  return is_split(weights) && weights.num_outputs % kPanel == 0;
}

// x += rows times weights (+ bias), in the columns of `panels`. `a` is prepared, `values` is scratch for the products.
inline void add_prepared(const Activations& a, const PackedWeights& weights, Range panels, const float* bias,
                         float* values, int64_t stride, float* x, int64_t x_stride) {
#if MARQUEE_LANES == 16
  if (is_overlapped(weights)) {
    multiply_split(a, weights, panels.first, panels.last,
                   [=](int64_t row, int64_t column, Vector sums) __attribute__((always_inline)) {
                     float* to = x + row * x_stride + column;
                     const Vector value = load(to) + sums;
                     store(to, bias == nullptr ? value : value + load(bias + column));
                   });
    return;
  }
#endif
  linear_prepared(a, weights, panels, values, stride);
  add_rows(values, stride, a.count, bias, columns_of(panels, weights.num_outputs), x, x_stride);
}

inline void add_linear(const Activations& a, const PackedWeights& weights, Range panels, const float* bias,
                       float* values, int64_t stride, float* x, int64_t x_stride) {
  prepare(a, weights);
  add_prepared(a, weights, panels, bias, values, stride, x, x_stride);
}

}  // namespace
}  // namespace marquee::decoder
