// The loops themselves, on GNU vectors of MARQUEE_LANES floats. Included by one .cpp for each instruction set,
// after its `#pragma GCC target`; everything is in an unnamed namespace and nothing but <cstdint> is included,
// so that no function compiled for a newer processor can be linked in for an older one.
//
// A row is summed in the same order whichever rows it is computed with, so a candidate's result never depends on
// what else is in the batch.
#include <cstdint>

#include "interaction/cpu_rows.h"
#include "lanes_impl.h"

namespace marquee::interaction {
namespace {

constexpr int kWidth = MARQUEE_LANES == 16 ? 4 : 2;  // accumulators: kTile * kWidth of 32 or 16 registers

// dots[row, k] = e[row] · q[k]
template <int Count>
inline void dot_products(const float* e, const float* q, int64_t E, int64_t K, float* dots) {
  for (int64_t k = 0; k < K; ++k, q += E) {
    Vector partial[Count] = {};
    int64_t i = 0;
    for (; i + kLanes <= E; i += kLanes) {
      const Vector query = load(q + i);
#pragma GCC unroll 4
      for (int row = 0; row < Count; ++row) {
        partial[row] += load(e + row * E + i) * query;
      }
    }
    for (int row = 0; row < Count; ++row) {
      float dot = sum(partial[row]);
      for (int64_t rest = i; rest < E; ++rest) {
        dot += e[row * E + rest] * q[rest];
      }
      dots[row * K + k] = dot;
    }
  }
}

// out[row, h : h + Width * kLanes] = relu(x + p + dots[row] @ w) there
template <int Count, int Width>
inline void hidden_block(const Operands& o, const float* x, const float* p, const float* dots, float* out, int64_t h) {
  Vector hidden[Count][Width];
#pragma GCC unroll 4
  for (int j = 0; j < Width; ++j) {
    const Vector profile = load(p + h + j * kLanes);
#pragma GCC unroll 4
    for (int row = 0; row < Count; ++row) {
      hidden[row][j] = load(x + row * o.H + h + j * kLanes) + profile;
    }
  }
  for (int64_t k = 0; k < o.K; ++k) {
#pragma GCC unroll 4
    for (int j = 0; j < Width; ++j) {
      const Vector weight = load(o.w + k * o.H + h + j * kLanes);
#pragma GCC unroll 4
      for (int row = 0; row < Count; ++row) {
        hidden[row][j] += dots[row * o.K + k] * weight;
      }
    }
  }
#pragma GCC unroll 4
  for (int row = 0; row < Count; ++row) {
#pragma GCC unroll 4
    for (int j = 0; j < Width; ++j) {
      store(out + row * o.H + h + j * kLanes, relu(hidden[row][j]));
    }
  }
}

// Count rows from `row` on, all of one request: one pass over their x, e and out.
template <int Count>
inline void tile(const Operands& o, int64_t row, int64_t request, float* dots) {
  const float* x = o.x + row * o.H;
  const float* p = o.p + request * o.H;
  float* out = o.out + row * o.H;
  dot_products<Count>(o.e + row * o.E, o.q + request * o.K * o.E, o.E, o.K, dots);
  int64_t h = 0;
  for (; h + kWidth * kLanes <= o.H; h += kWidth * kLanes) {
    hidden_block<Count, kWidth>(o, x, p, dots, out, h);
  }
  for (; h + kLanes <= o.H; h += kLanes) {
    hidden_block<Count, 1>(o, x, p, dots, out, h);
  }
  for (; h < o.H; ++h) {
    for (int i = 0; i < Count; ++i) {
      float hidden = x[i * o.H + h] + p[h];
      for (int64_t k = 0; k < o.K; ++k) {
        hidden += dots[i * o.K + k] * o.w[k * o.H + h];
      }
      out[i * o.H + h] = relu(hidden);
    }
  }
}

inline void rows(const Operands& o, int64_t begin, int64_t end, int64_t request, float* dots) {
  for (int64_t row = begin; row < end; ++request) {
    const int64_t request_end = o.offsets[request + 1] < end ? o.offsets[request + 1] : end;
    for (; row + kTile <= request_end; row += kTile) {
      tile<kTile>(o, row, request, dots);
    }
    for (; row < request_end; ++row) {
      tile<1>(o, row, request, dots);
    }
  }
}

}  // namespace
}  // namespace marquee::interaction
