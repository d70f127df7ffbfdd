// The inner loops of interaction_first_layer, compiled once for each instruction set.
// Shapes: B requests, C candidates, K dot products, E dot-product width, H first hidden width.
#pragma once

#include <cstdint>

namespace marquee::interaction {

struct Operands {
  const float* x;          // [C, H]
  const float* e;          // [C, E]
  const float* p;          // [B, H]
  const float* q;          // [B, K, E]
  const float* w;          // [K, H]
  const int64_t* offsets;  // [B + 1]
  float* out;              // [C, H]
  int64_t H, E, K;
};

// Candidates that are computed together, so that a loaded vector of q, p or w serves all of them.
constexpr int kTile = 4;

// Writes rows [begin, end) of out. `request` is the one that owns row `begin`; `dots` is scratch for kTile * K.
using Rows = void (*)(const Operands&, int64_t begin, int64_t end, int64_t request, float* dots);

void rows_baseline(const Operands&, int64_t begin, int64_t end, int64_t request, float* dots);
void rows_avx2(const Operands&, int64_t begin, int64_t end, int64_t request, float* dots);
void rows_avx512(const Operands&, int64_t begin, int64_t end, int64_t request, float* dots);

}  // namespace marquee::interaction
