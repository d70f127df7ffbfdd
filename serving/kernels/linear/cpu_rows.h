// The inner loops of marquee::linear, compiled once for each instruction set.
// Shapes: R rows, K inputs, N outputs.
#pragma once

#include <cstdint>

#include "linear/panels.h"

namespace marquee::linear {

struct Operands {
  const float* x;  // [R, K]
  PackedWeights weights;
  const float* bias;  // [N] or null
  float* out;         // [R, N]
};

// Rows that are computed together: as many as the tiles of both instruction sets divide.
constexpr int64_t kTile = 96;

// A block of out: rows, at most kTile, by panels.
struct Block {
  int64_t begin, end, first_panel, last_panel;
};

// Writes a block of out. `scratch` takes prepared_bytes(kTile, K), at a cache line.
using Rows = void (*)(const Operands&, Block block, uint8_t* scratch);

void rows_baseline(const Operands&, Block block, uint8_t* scratch);
void rows_avx2(const Operands&, Block block, uint8_t* scratch);
void rows_avx512(const Operands&, Block block, uint8_t* scratch);

}  // namespace marquee::linear
