// float32 values in three bfloat16 parts, as split_impl.h multiplies them. Included as amx_impl.h.
#pragma once

#include "linear/amx_impl.h"

#if MARQUEE_LANES == 16

namespace marquee {
namespace {

// A step is 32 inputs. Rows: [groups of 32 rows, steps, 3 parts, 2 tiles, 16 lines of 64 bytes].
constexpr int64_t kPartBytes = 2 * kTileBytes, kStepBytes = 3 * kPartBytes;

typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(64)));

struct Parts {
  Words part[3];  // float32 with 8 bits of mantissa: the upper half of each word
};

inline Parts split(Vector x) {
  const Words upper = (Words)x & 0xffff0000u;
  const Vector rest = x - (Vector)upper;
  const Words middle = (Words)rest & 0xffff0000u;
  return {{upper, middle, (Words)(rest - (Vector)middle)}};
}

inline Vector load_first(const float* from, int64_t count) {
  if (count >= kLanes) {
    return load(from);
  }
  float values[kLanes] = {};
  for (int64_t lane = 0; lane < count; ++lane) {
    values[lane] = from[lane];
  }
  return load(values);
}

// Rows [count, K] as [groups of 32 rows, steps, parts, tiles, lines]; inputs past K are zeros, rows past `count`
// anything. Step by step: all of a row's lines lie in the same few sets of the first cache.
inline void split_rows(const float* x, int64_t stride, int64_t count, int64_t K, uint8_t* to) {
  constexpr Halves kUpper = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                             33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  for (int64_t row = 0; row < count; row += kGroupRows) {
    const int64_t last = row + kGroupRows < count ? row + kGroupRows : count;
    for (int64_t k = 0; k < K; k += kStepInputs, to += kStepBytes) {
      for (int64_t i = row; i < last; ++i) {
        const Parts first = split(load_first(x + i * stride + k, K - k));
        const Parts second = split(load_first(x + i * stride + k + kLanes, K - k - kLanes));
        for (int part = 0; part < 3; ++part) {
          const Halves both = __builtin_shuffle((Halves)first.part[part], (Halves)second.part[part], kUpper);
          __builtin_memcpy(to + part * kPartBytes + (i - row) * kTileLine, &both, sizeof(both));
        }
      }
    }
  }
}

// 16 inputs of one row, from a multiple of 16 on, to where split_rows puts them.
__attribute__((always_inline)) inline void split_values(Vector values, int64_t row, int64_t k, int64_t K, uint8_t* to) {
  typedef uint16_t Half __attribute__((vector_size(32)));
  const int64_t steps = round_up(K, kStepInputs) / kStepInputs;
  to += (row / kGroupRows * steps + k / kStepInputs) * kStepBytes + row % kGroupRows * kTileLine + k % kStepInputs * 2;
  const Parts parts = split(values);
  for (int part = 0; part < 3; ++part) {
    const Half upper = __builtin_convertvector(parts.part[part] >> 16, Half);
    __builtin_memcpy(to + part * kPartBytes, &upper, sizeof(upper));
  }
}

}  // namespace
}  // namespace marquee

#endif
