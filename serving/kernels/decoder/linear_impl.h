// Every linear layer of the step is one call of `linear` here.
#pragma once

#include "decoder/step.h"
#include "linear/panels_impl.h"

namespace marquee::decoder {
namespace {

// What a linear layer reads: rows of scratch, `stride` floats apart.
struct Activations {
  const float* rows;
  int64_t stride, count;
};

// Panels [first, last) of a layer's outputs.
struct Range {
  int64_t first, last;
};

inline Range all_panels(const Weights& weights) { return {0, num_panels(weights.num_outputs)}; }

// A thread's part of `range`, in whole register tiles.
inline Range share(Range range, int64_t thread, int64_t num_threads) {
  const int64_t tiles = (range.last - range.first + kTilePanels - 1) / kTilePanels;
  const int64_t first = range.first + tiles * thread / num_threads * kTilePanels;
  const int64_t last = range.first + tiles * (thread + 1) / num_threads * kTilePanels;
  return {first, last < range.last ? last : range.last};
}

// out(row, column, sums) of rows times weights; columns past num_outputs are zeros.
template <class Out>
inline void linear(const Activations& a, const Weights& weights, Range panels, const Out& out) {
  multiply(a.rows, a.stride, a.count, weights.packed, weights.num_inputs, panels.first, panels.last, out);
}

// to[column : column + kLanes] += value, as far as there are columns.
inline void add_columns(float* to, int64_t column, int64_t num_columns, Vector value) {
  if (column + kLanes <= num_columns) {
    store(to + column, load(to + column) + value);
    return;
  }
  for (int64_t lane = 0; column + lane < num_columns; ++lane) {
    to[column + lane] += value[lane];
  }
}

// from[column : column + kLanes], as far as there are columns; then zeros.
inline Vector load_columns(const float* from, int64_t column, int64_t num_columns) {
  if (column + kLanes <= num_columns) {
    return load(from + column);
  }
  Vector value{};
  for (int64_t lane = 0; column + lane < num_columns; ++lane) {
    value[lane] = from[column + lane];
  }
  return value;
}

}  // namespace
}  // namespace marquee::decoder
