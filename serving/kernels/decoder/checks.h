// What marquee::decoder_step demands of its operands, before any of them is read.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace marquee::decoder {

// The operator's arguments, see ops.py.
struct Arguments {
  const at::Tensor &x, &offsets, &rotations;
  at::TensorList weights, scales, stored;
  const std::optional<at::Tensor>& stored_offsets;
  int64_t num_heads;
  bool branches;
  int64_t window, num_prefix;
  bool last_only;
  int64_t num_kept;
};

constexpr int64_t kWeightsPerLayer = 10;

inline int64_t num_layers(const Arguments& a) { return (int64_t(a.weights.size()) - 2) / kWeightsPerLayer; }

// Offsets as int64, checked: `what` names them, `total` is what the last must be.
std::vector<int64_t> checked_offsets(const at::Tensor& offsets, const char* what, int64_t total);

// Throws a ValueError or a TypeError that names the operand and what would be right.
void check_operands(const Arguments& arguments);
void check_positions(const Arguments& arguments, const std::vector<int64_t>& offsets,
                     const std::vector<int64_t>& stored_offsets);

}  // namespace marquee::decoder
