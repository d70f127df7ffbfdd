// What one call of marquee::score_candidates hands to the loops of each instruction set.
// Shapes: B requests, C candidates, I item rows, K dot products, E dot-product width, H first hidden width, N tasks.
#pragma once

#include <cstdint>

#include "linear/panels.h"

namespace marquee::candidates {

// Candidates per task: two tiles of `multiply` on AVX-512, four on AVX2, so that no remainder is computed within. AMX
// splits a layer's weights for each task: it gets equal shares of up to kMostTileCandidates, see tile_candidates.
constexpr int64_t kTileCandidates = 24, kMostTileCandidates = 128;

struct Linear {
  PackedWeights weights{};
  const float* bias = nullptr;  // padded to whole panels; null: there is none
};

// Item rows [I, width], float32, or int8 with a scale for each.
struct Table {
  const void* values = nullptr;
  const float* scales = nullptr;  // [I]; null: float32
  int64_t width = 0;
};

struct Operands {
  const int64_t* rows;     // [C]
  const int64_t* offsets;  // [B + 1]
  Table x;                 // of width H
  Table e;                 // of width E
  const float* p;          // [B, H], p_stride floats from one request to the next
  const float* q;          // [B, K, E], q_stride
  int64_t p_stride, q_stride;
  int64_t num_dots;        // K
  const float* features;   // [C, F]; null: none, and F is 0
  PackedWeights met;       // float32, K + F inputs: the dot products, then the features
  const float* crossed;    // [C, crossing.num_inputs]; null: none
  PackedWeights crossing;
  const Linear* layers;    // the hidden ones after the first, then the head
  int64_t num_layers;
  float* logits;           // [C, N]
  int64_t num_requests;    // B
  int64_t num_candidates;  // C
  int64_t widest;          // outputs of the widest layer, the first included
  int64_t widest_input;    // of layers whose rows are prepared: quantised, or split for AMX
  int64_t tile;            // candidates of a task, at most kMostTileCandidates
};

// Floats of scratch that one thread needs.
int64_t scratch_floats(const Operands& operands);

// Where a thread is: its scratch, and the request whose queries lie packed in it.
struct Worker {
  float* scratch;
  int64_t packed_request;  // -1: none yet
};

// Scores candidates [tile * operands.tile, ...); reads ahead the item rows of `next`, a tile or past the last.
using ScoreTile = void (*)(const Operands& operands, Worker& worker, int64_t tile, int64_t next);

void score_tile_baseline(const Operands& operands, Worker& worker, int64_t tile, int64_t next);
void score_tile_avx2(const Operands& operands, Worker& worker, int64_t tile, int64_t next);
void score_tile_avx512(const Operands& operands, Worker& worker, int64_t tile, int64_t next);

}  // namespace marquee::candidates
