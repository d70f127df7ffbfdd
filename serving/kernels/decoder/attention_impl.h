// Attention of some rows of one sequence, head by head, over keys in chunks with a running softmax (Milakov and
// Gimelshein, arXiv 1805.02867). Chunks are cut by the keys' places and a key out of sight weighs exactly 0, so that a
// row's result never depends on the rows beside it.
#pragma once

#include "decoder/linear_impl.h"
#include "decoder/step.h"
#include "math_impl.h"

namespace marquee::decoder {
namespace {

constexpr float kNoScore = -__builtin_inff();
constexpr float kBelowAnyScore = -1e30f;  // finite: the first chunk's exp(largest before - largest) is 0, not NaN

// Queries of one head: row i sits at position + i * step (branches: all at the same).
struct Queries {
  const float* rows;  // rotated, scaled by 1 / sqrt(K)
  int64_t stride, count, position, step;
};

// Keys and values of one head, from some position on.
struct Keys {
  const float *keys, *values;
  int64_t stride, position, count;
};

// The running softmax of the rows: Σ p v, the largest score, Σ p; and scratch for a chunk.
struct Softmax {
  float *sums, *largest, *total;  // [rows, padded(K)], [rows], [rows]
  float *keys, *values, *scores;  // [kChunkKeys / 16, K, 16], [kChunkKeys, padded(K)], [kTileRows, scores_stride]
};

constexpr int64_t kScoresStride = scratch_stride(kChunkKeys);

// Which of a chunk's keys the rows of a tile may see; `first` is a multiple of 16.
struct Span {
  int64_t first, last;
};

inline int64_t nearest_hidden(const Step& step, int64_t position) {  // keys below it are out of the window
  return step.window > 0 && position >= step.window ? position - step.window + 1 : 0;
}

inline Span span_of(const Step& step, const Keys& chunk, int64_t first_position, int64_t last_position) {
  const int64_t hidden = nearest_hidden(step, first_position) - chunk.position;
  const int64_t end = last_position + 1 - chunk.position;
  return {step.num_prefix > chunk.position || hidden <= 0 ? 0 : hidden / kPanel * kPanel,
          end < chunk.count ? end : chunk.count};
}

// Transposes a square of kLanes x kLanes in registers: log2(kLanes) rounds, each swaps halves of blocks.
inline void transpose(Vector (&square)[kLanes]) {
#pragma GCC unroll 4
  for (int half = 1; half < kLanes; half *= 2) {
    Integers low, high;
    for (int lane = 0; lane < kLanes; ++lane) {
      low[lane] = lane & half ? kLanes + lane - half : lane;
      high[lane] = lane & half ? kLanes + lane : lane + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (!(i & half)) {
        const Vector a = square[i], b = square[i + half];
        square[i] = __builtin_shuffle(a, b, low);
        square[i + half] = __builtin_shuffle(a, b, high);
      }
    }
  }
}

// One panel of up to 16 keys, [K, 16]; keys past `count` are zeros.
inline void pack_panel(const float* keys, int64_t stride, int64_t count, int64_t K, float* panel) {
  for (int64_t first = 0; first < kPanel; first += kLanes) {
    int64_t k = 0;
    for (; first + kLanes <= count && k + kLanes <= K; k += kLanes) {
      Vector square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        square[i] = load(keys + (first + i) * stride + k);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        store(panel + (k + i) * kPanel + first, square[i]);
      }
    }
    for (; k < K; ++k) {
      for (int64_t i = first; i < first + kLanes; ++i) {
        panel[k * kPanel + i] = i < count ? keys[i * stride + k] : 0;
      }
    }
  }
}

// Scores of a row to weights exp(score - largest), and its share of the sums so far, exp(largest before - largest).
inline float weigh(const Step& step, const Keys& chunk, Span span, int64_t position, float* scores, float& largest,
                   float& total) {
  const int64_t end = (span.last + kPanel - 1) / kPanel * kPanel;
  const int64_t own_end = position + 1 - chunk.position < span.last ? position + 1 - chunk.position : span.last;
  for (int64_t key = own_end > span.first ? own_end : span.first; key < end; ++key) {
    scores[key] = kNoScore;
  }
  const int64_t prefix = step.num_prefix - chunk.position, hidden = nearest_hidden(step, position) - chunk.position;
  for (int64_t key = prefix > span.first ? prefix : span.first; key < hidden && key < end; ++key) {
    scores[key] = kNoScore;
  }
  Vector most = splat(largest);
  for (int64_t key = span.first; key < end; key += kLanes) {
    most = larger(most, load(scores + key));
  }
  float now = most[0];
  for (int lane = 1; lane < kLanes; ++lane) {
    now = now > most[lane] ? now : most[lane];
  }
  Vector sums{};
  for (int64_t key = span.first; key < end; key += kLanes) {
    const Vector weight = exp(load(scores + key) - now);
    store(scores + key, weight);
    sums += weight;
  }
  const float kept = exp(splat(largest - now))[0];
  largest = now;
  total = total * kept + sum(sums);
  return kept;
}

// The register tiles are not inlined, as in linear_impl.h. scores[i, key] = q_i · k_key, for panels of keys.
__attribute__((noinline)) void score(const float* queries, int64_t stride, int64_t count, const float* keys, int64_t K,
                                     int64_t first_panel, int64_t last_panel, float* scores) {
  multiply(queries, stride, count, keys, K, first_panel, last_panel,
           [=](int64_t i, int64_t key, Vector sums) { store(scores + i * kScoresStride + key, sums); });
}

// sums[i] = sums[i] * kept[i] + Σ_key weights[i, key] values[key]
__attribute__((noinline)) void add_values(const float* weights, int64_t count, int64_t num_keys, const float* values,
                                          int64_t stride, int64_t K, const float* kept, float* sums) {
  multiply_strided(weights, kScoresStride, count, values, stride, num_keys, num_panels(K),
                   [=](int64_t i, int64_t column, Vector weighted) {
                     float* to = sums + i * padded(K) + column;
                     store(to, load(to) * kept[i] + weighted);
                   });
}

// A tile of rows over a chunk: scores, weights, weighted values.
inline void attend_tile(const Step& step, const Queries& queries, int64_t row, int64_t count, const Keys& chunk,
                        const Softmax& softmax) {
  const int64_t K = step.K, first_position = queries.position + row * queries.step;
  const Span span = span_of(step, chunk, first_position, first_position + (count - 1) * queries.step);
  if (span.first >= span.last) {
    return;
  }
  score(queries.rows + row * queries.stride, queries.stride, count, softmax.keys, K, span.first / kPanel,
        num_panels(span.last), softmax.scores);
  float kept[kMostTileRows];
  for (int64_t i = 0; i < count; ++i) {
    kept[i] = weigh(step, chunk, span, first_position + i * queries.step, softmax.scores + i * kScoresStride,
                    softmax.largest[row + i], softmax.total[row + i]);
  }
  const bool is_whole = K % kPanel == 0;
  const int64_t value_stride = is_whole ? chunk.stride : padded(K);
  const float* values = is_whole ? chunk.values : softmax.values;
  add_values(softmax.scores + span.first, count, span.last - span.first, values + span.first * value_stride,
             value_stride, K, kept, softmax.sums + row * padded(K));
}

// Rows over a chunk of at most kChunkKeys keys.
inline void attend_chunk(const Step& step, const Queries& queries, const Keys& chunk, const Softmax& softmax) {
  const int64_t K = step.K, last_position = queries.position + (queries.count - 1) * queries.step;
  const Span span = span_of(step, chunk, queries.position, last_position);
  for (int64_t key = span.first; key < span.last; key += kPanel) {
    const int64_t count = chunk.count - key < kPanel ? chunk.count - key : kPanel;
    pack_panel(chunk.keys + key * chunk.stride, chunk.stride, count, K, softmax.keys + key * K);
  }
  if (K % kPanel != 0) {
    for (int64_t key = span.first; key < span.last; ++key) {
      for (int64_t k = 0; k < padded(K); ++k) {
        softmax.values[key * padded(K) + k] = k < K ? chunk.values[key * chunk.stride + k] : 0;
      }
    }
  }
  for (int64_t row = 0; row < queries.count; row += kTileRows) {
    const int64_t count = queries.count - row < kTileRows ? queries.count - row : kTileRows;
    attend_tile(step, queries, row, count, chunk, softmax);
  }
}

inline void attend(const Step& step, const Queries& queries, const Keys& keys, const Softmax& softmax) {
  for (int64_t first = 0; first < keys.count; first += kChunkKeys) {
    const int64_t rest = keys.count - first;
    attend_chunk(step, queries,
                 {keys.keys + first * keys.stride, keys.values + first * keys.stride, keys.stride,
                  keys.position + first, rest < kChunkKeys ? rest : kChunkKeys},
                 softmax);
  }
}

// A branch joins itself: one more key, each row its own.
inline void attend_itself(const Queries& queries, const Keys& own, int64_t K, const Softmax& softmax) {
  for (int64_t row = 0; row < queries.count; ++row) {
    const float *q = queries.rows + row * queries.stride, *k = own.keys + row * own.stride;
    Vector partial{};
    int64_t i = 0;
    for (; i + kLanes <= K; i += kLanes) {
      partial += load(q + i) * load(k + i);
    }
    float score = sum(partial);
    for (; i < K; ++i) {
      score += q[i] * k[i];
    }
    const float before = softmax.largest[row], now = before > score ? before : score;
    const float kept = exp(splat(before - now))[0], weight = exp(splat(score - now))[0];
    softmax.total[row] = softmax.total[row] * kept + weight;
    float* sums = softmax.sums + row * padded(K);
    for (int64_t column = 0; column < K; ++column) {
      sums[column] = sums[column] * kept + weight * own.values[row * own.stride + column];
    }
  }
}

inline void start(const Softmax& softmax, int64_t rows, int64_t K) {
  for (int64_t row = 0; row < rows; ++row) {
    softmax.largest[row] = kBelowAnyScore;
    softmax.total[row] = 0;
  }
  for (int64_t i = 0; i < rows * padded(K); i += kLanes) {
    store(softmax.sums + i, Vector{});
  }
}

// out[row, k] = sums / total
inline void finish(const Softmax& softmax, int64_t rows, int64_t K, float* out, int64_t stride) {
  for (int64_t row = 0; row < rows; ++row) {
    const float scale = 1.0f / softmax.total[row];
    for (int64_t k = 0; k < K; ++k) {
      out[row * stride + k] = softmax.sums[row * padded(K) + k] * scale;
    }
  }
}

}  // namespace
}  // namespace marquee::decoder
