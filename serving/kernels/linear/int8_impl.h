// Rows quantised to bytes, and bytes times packed int8 panels. Included as panels_impl.h; avx512 needs avx512bw.
//
//     q = round(x * 127 / max|x|) of a row, half to even; stored as u = q + 128, four inputs in one unit
//     out = (sum(u * w) - 128 * sum(w)) * row scale * column scale
//
// Weights are in [-63, 63], so that no pair of products leaves 16 bits (2 * 255 * 63 < 2^15): the integer sums are the
// same with every instruction set, and so is each row's result, whatever else is in the batch.
#pragma once

#include <immintrin.h>

#include "lanes_impl.h"
#include "linear/panels.h"
#include "linear/panels_impl.h"

namespace marquee {
namespace {

typedef int32_t IntVector __attribute__((vector_size(4 * MARQUEE_LANES)));
typedef int32_t IntUnaligned __attribute__((vector_size(4 * MARQUEE_LANES), aligned(1), may_alias));
typedef uint8_t ByteVector __attribute__((vector_size(MARQUEE_LANES)));
typedef uint8_t ByteUnaligned __attribute__((vector_size(MARQUEE_LANES), aligned(1), may_alias));

// Half to even, as torch.round. The masked form: the plain one warns of its own undefined operand in GCC 12.
inline IntVector rounded(Vector value) {
#if MARQUEE_LANES == 16
  return (IntVector)_mm512_maskz_cvtps_epi32(0xffff, value);
#elif MARQUEE_LANES == 8
  return (IntVector)_mm256_cvtps_epi32(value);
#else
  return (IntVector)_mm_cvtps_epi32(value);
#endif
}

// Four inputs of a row, bytes, times four of each output's weights, summed for each output.
__attribute__((always_inline)) inline IntVector products(int32_t x, IntVector weights) {
#if MARQUEE_LANES == 16
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi32(x), (__m512i)weights);
  return (IntVector)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif MARQUEE_LANES == 8
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi32(x), (__m256i)weights);
  return (IntVector)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
  const __m128i zeros = _mm_setzero_si128(), bytes = (__m128i)weights;
  const __m128i inputs = _mm_unpacklo_epi8(_mm_set1_epi32(x), zeros);
  const __m128i low = _mm_madd_epi16(inputs, _mm_srai_epi16(_mm_unpacklo_epi8(zeros, bytes), 8));
  const __m128i high = _mm_madd_epi16(inputs, _mm_srai_epi16(_mm_unpackhi_epi8(zeros, bytes), 8));
  return __builtin_shuffle((IntVector)low, (IntVector)high, IntVector{0, 2, 4, 6}) +
         __builtin_shuffle((IntVector)low, (IntVector)high, IntVector{1, 3, 5, 7});
#endif
}

// As Float32. Measured in G operations/s of one core at K = 256: AVX-512 257, with VNNI 540 (float32: 165); AVX2
// 188 (110), where six rows would need more registers than there are.
struct Int8 {
  typedef int32_t Unit __attribute__((may_alias));
  using Sums = IntVector;
  static constexpr int kRows = MARQUEE_LANES == 8 ? 4 : kTileRows;

  static IntVector load(const Unit* from) { return *reinterpret_cast<const IntUnaligned*>(from); }
  static int32_t spread(int32_t x) { return x; }
  __attribute__((always_inline)) static IntVector add(IntVector sums, int32_t x, IntVector weights) {
    return sums + products(x, weights);
  }
};

#if MARQUEE_LANES == 16
// One instruction for the three of Int8. In assembly, so that a processor without VNNI can run what is around it.
struct Int8Vnni : Int8 {
  __attribute__((always_inline)) static IntVector add(IntVector sums, int32_t x, IntVector weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(_mm512_set1_epi32(x)), "v"(weights));
    return sums;
  }
};
#endif

// Quantises `rows` rows of `x` (`stride` floats apart) to units of `to` (byte_stride(K) bytes apart, padded to whole
// units) and their scales. A row of zeros gets scale 0; one with a NaN or an infinity gets scale NaN, and so NaN
// outputs. One whose largest value is below 2^-100 counts as zeros.
inline void quantise_rows(const float* x, int64_t stride, int64_t rows, int64_t K, uint8_t* to, float* scales) {
  constexpr int32_t kSmallest = 27 << 23, kInfinity = 255 << 23, kMagnitude = 0x7fffffff;
  for (int64_t row = 0; row < rows; ++row, x += stride, to += byte_stride(K)) {
    // As integers magnitudes keep their order, and NaNs come after infinity.
    IntVector largest_of = {};
    int64_t k = 0;
    for (; k + kLanes <= K; k += kLanes) {
      const IntVector bits = (IntVector)load(x + k) & kMagnitude;
      largest_of = bits > largest_of ? bits : largest_of;
    }
    int32_t largest = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      largest = largest_of[lane] > largest ? largest_of[lane] : largest;
    }
    for (; k < K; ++k) {
      int32_t bits;
      __builtin_memcpy(&bits, x + k, 4);
      bits &= kMagnitude;
      largest = bits > largest ? bits : largest;
    }
    const bool usable = kSmallest <= largest && largest < kInfinity;
    float magnitude;
    __builtin_memcpy(&magnitude, &largest, 4);
    const float inverse = usable ? 127.0f / magnitude : 0.0f;
    scales[row] = usable ? magnitude / 127.0f : largest < kSmallest ? 0.0f : __builtin_nanf("");
    for (k = 0; k + kLanes <= K; k += kLanes) {
      const IntVector q = usable ? rounded(load(x + k) * inverse) : IntVector{};
      *reinterpret_cast<ByteUnaligned*>(to + k) = __builtin_convertvector(q + 128, ByteVector);
    }
    for (; k < round_up(K, 4); ++k) {
      const float value = usable && k < K ? x[k] * inverse : 0.0f;
      to[k] = static_cast<uint8_t>(_mm_cvtss_si32(_mm_set_ss(value)) + 128);
    }
  }
}

// out(row, column, sums) for quantised rows times panels [first, last) of int8 weights.
template <class Product, class Out>
inline void multiply_units(const uint8_t* rows, int64_t count, const PackedWeights& weights, int64_t first,
                           int64_t last, const Out& out) {
  const int64_t units = round_up(weights.num_inputs, 4) / 4;
  multiply_all<Product>({reinterpret_cast<const Int8::Unit*>(rows), byte_stride(weights.num_inputs) / 4}, count,
                        {static_cast<const Int8::Unit*>(weights.data), units * kPanel, kPanel, units}, first, last,
                        out);
}

}  // namespace
}  // namespace marquee
