// exp, GELU and layer norm on vectors. Included after `#pragma GCC target` and MARQUEE_LANES, see lanes_impl.h.
#pragma once

#include "lanes_impl.h"

namespace marquee {
namespace {

typedef int32_t Integers __attribute__((vector_size(4 * MARQUEE_LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * MARQUEE_LANES)));

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// e^x for x <= 88, to 1.2e-7 of it; 0 below -87, NaN stays NaN. x = n ln 2 + r, |r| <= ln 2 / 2 (Cody and Waite); e^r is
// its Taylor polynomial of degree 7 there.
inline Vector exp(Vector x) {
  const Vector low = splat(-87.0f);
  const Vector bounded = x < low ? low : x;
  const Vector magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the last bits
  const Vector shifted = bounded * 1.44269504f + magic;
  const Vector n = shifted - magic;
  Vector r = bounded - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  Vector power = splat(1.98412698e-4f);
  power = power * r + 1.38888889e-3f;
  power = power * r + 8.33333333e-3f;
  power = power * r + 4.16666667e-2f;
  power = power * r + 0.166666667f;
  power = power * r + 0.5f;
  power = power * r + 1.0f;
  power = power * r + 1.0f;
  const Bits exponent = ((Bits)shifted << 23) + (Bits)splat(1.0f);  // unsigned: of a NaN it may be anything
  const Vector value = power * (Vector)exponent;
  return x < low ? Vector{} : value;
}

// x Φ(x) = x (0.5 + erf(x / sqrt 2) / 2), to 1e-7 max(1, |x|). The odd function in the bracket is x times a polynomial of
// x², fitted on |x| <= 5.6 (least largest error, 1.2e-8), beyond which it is 0.5 in float32; u = 2 x² / 5.6² - 1.
inline Vector gelu(Vector x) {
  constexpr float kBound = 5.6f;
  constexpr float kCoefficients[] = {-0.000330654759f, 0.000858680578f, -0.000628862297f, 0.00074912951f,
                                     -0.00286321994f,  0.00540428795f,  -0.00754361041f,  0.0109355859f,
                                     -0.0157528184f,   0.0209583547f,   -0.0263123326f,   0.0319672972f,
                                     -0.0383454598f,   0.0469810292f,   -0.0630512908f,   0.126259595f};
  Vector bounded = x > kBound ? splat(kBound) : x;
  bounded = bounded < -kBound ? splat(-kBound) : bounded;
  const Vector u = bounded * (bounded * (2 / (kBound * kBound))) - 1.0f;
  Vector half_erf = splat(kCoefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < 16; ++i) {
    half_erf = half_erf * u + kCoefficients[i];
  }
  return x * (half_erf * bounded + 0.5f);
}

// x = gelu(x + bias) of N values.
inline void bias_gelu(float* x, const float* bias, int64_t N) {
  int64_t i = 0;
  for (; i + kLanes <= N; i += kLanes) {
    store(x + i, gelu(load(x + i) + load(bias + i)));
  }
  for (; i < N; ++i) {
    x[i] = gelu(splat(x[i] + bias[i]))[0];
  }
}

// out = (x - mean) / sqrt(variance + epsilon) * weight + bias over one row of width N.
inline void layer_norm(const float* x, int64_t N, const float* weight, const float* bias, float epsilon, float* out) {
  Vector sums{};
  float rest = 0;
  int64_t i = 0;
  for (; i + kLanes <= N; i += kLanes) {
    sums += load(x + i);
  }
  for (int64_t j = i; j < N; ++j) {
    rest += x[j];
  }
  const float mean = (sum(sums) + rest) / float(N);
  Vector squares{};
  rest = 0;
  for (int64_t j = 0; j < i; j += kLanes) {
    const Vector centred = load(x + j) - mean;
    squares += centred * centred;
  }
  for (int64_t j = i; j < N; ++j) {
    rest += (x[j] - mean) * (x[j] - mean);
  }
  const float scale = 1.0f / __builtin_sqrtf((sum(squares) + rest) / float(N) + epsilon);
  for (int64_t j = 0; j < i; j += kLanes) {
    store(out + j, (load(x + j) - mean) * scale * load(weight + j) + load(bias + j));
  }
  for (int64_t j = i; j < N; ++j) {
    out[j] = (x[j] - mean) * scale * weight[j] + bias[j];
  }
}

}  // namespace
}  // namespace marquee
