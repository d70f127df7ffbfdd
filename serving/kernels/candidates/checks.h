// What marquee::score_candidates demands of its operands, before any of them is read: else a ValueError or a TypeError
// that names the operand and what would be right. Shapes: B requests, C candidates, I item rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "candidates/tiles.h"

namespace marquee::candidates {

// Of this shape, and contiguous; of float32 too.
void check_layout(const at::Tensor& tensor, const std::string& name, at::IntArrayRef shape);
void check_floats(const at::Tensor& tensor, const std::string& name, at::IntArrayRef shape);

// How many floats a request's values lie behind the former request's; those of one request lie together.
int64_t rows_apart(const at::Tensor& tensor, const std::string& name, at::IntArrayRef shape);

// [num_items, width]: float32, or with scales int8.
Table table_of(const at::Tensor& tensor, const std::string& name, int64_t num_items, const at::Tensor* scales);

// [C, width], float32
const float* rows_of(const at::Tensor& tensor, const std::string& name, int64_t C);

// The values matter for memory safety: a wrong one would read another request's rows, or past the end.
void check_offsets(const int64_t* offsets, int64_t B, int64_t C);
void check_rows(const int64_t* rows, int64_t C, int64_t num_items);

}  // namespace marquee::candidates
