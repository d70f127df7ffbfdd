// GNU vectors of MARQUEE_LANES floats. Included by one .cpp for each instruction set, after its `#pragma GCC target`;
// everything is in an unnamed namespace and nothing but <cstdint> is included, so that no function compiled for a
// newer processor can be linked in for an older one.
#pragma once

#include <cstdint>

namespace marquee {
namespace {

typedef float Vector __attribute__((vector_size(4 * MARQUEE_LANES)));
typedef float Unaligned __attribute__((vector_size(4 * MARQUEE_LANES), aligned(4), may_alias));

constexpr int kLanes = MARQUEE_LANES;

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }
inline Vector splat(float value) { return value - Vector{}; }

// As torch.relu: NaN stays NaN.
inline float relu(float value) { return value < 0 ? 0 : value; }
inline Vector relu(Vector value) { return value < 0 ? Vector{} : value; }

inline float sum(Vector value) {
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      value[lane] += value[lane + half];
    }
  }
  return value[0];
}

}  // namespace
}  // namespace marquee
