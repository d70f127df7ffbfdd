// The stages of a block, for rows [begin, end) and some panels of the weights: a thread takes either some rows and all
// panels, or all rows and some panels.
#pragma once

#include "decoder/attention_impl.h"
#include "decoder/linear_impl.h"
#include "decoder/step.h"
#include "math_impl.h"

namespace marquee::decoder {
namespace {

// Columns whose activation follows at once, while they are in the first cache.
constexpr int64_t kStripePanels = 6;

struct Scratch {
  float* normed;  // [rows, scratch_stride(D)], the next linear layer's input
  float* hidden;  // [rows, hidden_stride]: queries, keys and values; or hidden units, also as AMX reads them
  int64_t stride, hidden_stride;
  uint8_t* bytes;  // prepared_bytes(rows, max(F, D)), rows as products read them
  float* scales;   // [rows], theirs
  Softmax softmax;

  Activations activations(const float* from, int64_t from_stride, int64_t count) const {
    return {from, from_stride, count, bytes, scales};
  }
};

inline Scratch scratch_of(const Step& step, int64_t thread) {
  const int64_t rows = scratch_rows(step);
  Scratch scratch;
  float* at = step.scratch + thread * step.scratch_floats;
  const auto take = [&](int64_t floats) {
    float* taken = at;
    at += floats;
    return taken;
  };
  scratch.stride = scratch_stride(step.D);
  scratch.hidden_stride = hidden_stride(step);
  scratch.normed = take(rows * scratch.stride);
  scratch.hidden = take(hidden_floats(step));
  scratch.bytes = reinterpret_cast<uint8_t*>(take(prepared_floats(step)));
  scratch.scales = take(rows);
  Softmax& softmax = scratch.softmax;
  softmax.sums = take(rows * padded(step.K));
  softmax.keys = take(kChunkKeys * step.K);
  softmax.values = take(kChunkKeys * padded(step.K));
  softmax.scores = take(kMostTileRows * kScoresStride);
  softmax.largest = take(rows);
  softmax.total = take(rows);
  return scratch;
}

// Calls f(sequence, first row, last row) for the sequences that rows [begin, end) belong to.
template <class F>
inline void by_sequence(const Rows& rows, int64_t B, int64_t begin, int64_t end, const F& f) {
  int64_t low = 0, high = B;  // the last sequence that begins at or before `begin`
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (rows.offsets[middle] <= begin ? low : high) = middle;
  }
  for (int64_t b = low; begin < end; ++b) {
    const int64_t last = rows.offsets[b + 1] < end ? rows.offsets[b + 1] : end;
    if (begin < last) {
      f(b, begin, last);
      begin = last;
    }
  }
}

// Where a row lies in its sequence: tokens before it that are new, and its position.
inline int64_t token_of(const Rows& rows, int64_t b, int64_t row) { return rows.first[b] + row - rows.offsets[b]; }
inline int64_t num_stored(const Step& step, int64_t b) { return step.stored_offsets[b + 1] - step.stored_offsets[b]; }
inline int64_t position_of(const Step& step, int64_t b, int64_t token) {
  return num_stored(step, b) + (step.branches ? 0 : token);
}

inline void norm_rows(const Step& step, const float* weight, const float* bias, const float* x, int64_t count,
                      const Scratch& scratch) {
  for (int64_t i = 0; i < count; ++i) {
    layer_norm(x + i * step.D, step.D, weight, bias, kNormEpsilon, scratch.normed + i * scratch.stride);
  }
}

// One head turned by its position, times `scale`.
inline void rotate(const float* x, const float* rotation, int64_t K, float scale, float* out) {
  const int64_t half = K / 2;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vector first = load(x + i), second = load(x + half + i);
    const Vector cosine = load(rotation + i) * scale, sine = load(rotation + half + i) * scale;
    store(out + i, first * cosine - second * sine);
    store(out + half + i, first * sine + second * cosine);
  }
  for (; i < half; ++i) {
    const float first = x[i], second = x[half + i];
    const float cosine = rotation[i] * scale, sine = rotation[half + i] * scale;
    out[i] = first * cosine - second * sine;
    out[half + i] = first * sine + second * cosine;
  }
}

// Queries of rows [begin, end) of one sequence and some heads, from the projections of those rows.
inline void write_queries(const Step& step, const Rows& rows, int64_t b, int64_t begin, int64_t end, Range heads,
                          const float* projected, int64_t stride) {
  const float scale = 1.0f / __builtin_sqrtf(float(step.K));
  for (int64_t row = begin; row < end; ++row) {
    const float* rotation = step.rotations + position_of(step, b, token_of(rows, b, row)) * step.K;
    const float* from = projected + (row - begin) * stride;
    float* to = rows.queries + row * step.D;
    for (int64_t at = heads.first * step.K; at < heads.last * step.K; at += step.K) {
      rotate(from + at, rotation, step.K, scale, to + at);
    }
  }
}

// Their keys and values; rows are those of all new tokens.
inline void write_keys_values(const Step& step, const Layer& layer, int64_t b, int64_t begin, int64_t end, Range heads,
                              const float* projected, int64_t stride) {
  const int64_t first = heads.first * step.K, last = heads.last * step.K;
  for (int64_t row = begin; row < end; ++row) {
    const float* rotation = step.rotations + position_of(step, b, token_of(step.all, b, row)) * step.K;
    const float* from = projected + (row - begin) * stride + step.D;
    float *keys = layer.keys + row * step.D, *values = layer.values + row * step.D;
    for (int64_t at = first; at < last; at += step.K) {
      rotate(from + at, rotation, step.K, 1.0f, keys + at);
    }
    for (int64_t at = first; at < last; ++at) {
      values[at] = from[step.D + at];
    }
  }
}

// Attention of one head of rows [begin, end) of sequence b; out[i, head, :] of row begin + i.
inline void attend_head(const Step& step, const Layer& layer, const Rows& rows, int64_t b, int64_t begin, int64_t end,
                        int64_t head, const Softmax& softmax, float* out, int64_t stride) {
  const int64_t D = step.D, K = step.K, at = head * K, token = token_of(rows, b, begin), stored = num_stored(step, b);
  const Queries queries{rows.queries + begin * D + at, D, end - begin, position_of(step, b, token), !step.branches};
  start(softmax, queries.count, K);
  if (stored > 0) {
    const int64_t first = step.stored_offsets[b] * D + at;
    attend(step, queries, {layer.stored_keys + first, layer.stored_values + first, D, 0, stored}, softmax);
  }
  if (step.branches) {
    const int64_t first = begin * D + at;
    attend_itself(queries, {layer.keys + first, layer.values + first, D, 0, 1}, K, softmax);
  } else {
    const int64_t first = step.offsets[b] * D + at;
    attend(step, queries, {layer.keys + first, layer.values + first, D, stored, token + queries.count}, softmax);
  }
  finish(softmax, queries.count, K, out + at, stride);
}

// hidden = gelu(rows times feed_in + bias) in the columns of `panels`.
inline void feed_in(const Activations& a, const Layer& layer, Range panels, float* hidden, int64_t stride) {
  prepare(a, layer.feed_in);
#if MARQUEE_LANES == 16
  if (is_overlapped(layer.feed_in)) {
    multiply_split(a, layer.feed_in, panels.first, panels.last,
                   [=, bias = layer.feed_in_bias](int64_t row, int64_t column, Vector sums)
                       __attribute__((always_inline)) {
                         store(hidden + row * stride + column, gelu(sums + load(bias + column)));
                       });
    return;
  }
#endif
  for (int64_t first = panels.first; first < panels.last; first += kStripePanels) {
    const Range stripe{first, first + kStripePanels < panels.last ? first + kStripePanels : panels.last};
    linear_prepared(a, layer.feed_in, stripe, hidden, stride);
    const Range columns = columns_of(stripe, layer.feed_in.num_outputs);
    for (int64_t row = 0; row < a.count; ++row) {
      bias_gelu(hidden + row * stride + columns.first, layer.feed_in_bias + columns.first,
                columns.last - columns.first);
    }
  }
}

// x += gelu(normed times feed_in + bias) times feed_out + bias
inline void feed_forward(const Activations& normed, const Layer& layer, float* x, int64_t D, const Scratch& scratch) {
#if MARQUEE_LANES == 16
  const int64_t F = layer.feed_in.num_outputs;
  if (is_split(layer.feed_in) && is_split(layer.feed_out) && F % kStepInputs == 0) {
    auto* bytes = reinterpret_cast<uint8_t*>(scratch.hidden);
    prepare(normed, layer.feed_in);
    multiply_split(normed, layer.feed_in, 0, num_panels(F),
                   [=, bias = layer.feed_in_bias](int64_t row, int64_t column, Vector sums)
                       __attribute__((always_inline)) {
                         split_values(gelu(sums + load(bias + column)), row, column, F, bytes);
                       });
    add_prepared({nullptr, 0, normed.count, bytes, nullptr}, layer.feed_out, all_panels(layer.feed_out),
                 layer.feed_out_bias, scratch.normed, scratch.stride, x, D);
    return;
  }
#endif
  feed_in(normed, layer, all_panels(layer.feed_in), scratch.hidden, scratch.hidden_stride);
  add_linear(scratch.activations(scratch.hidden, scratch.hidden_stride, normed.count), layer.feed_out,
             all_panels(layer.feed_out), layer.feed_out_bias, scratch.normed, scratch.stride, x, D);
}

}  // namespace
}  // namespace marquee::decoder
