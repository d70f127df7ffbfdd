#include "candidates/checks.h"

#include <ATen/ops/select.h>
#include <c10/util/Exception.h>

namespace marquee::candidates {

void check_layout(const at::Tensor& tensor, const std::string& name, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "score_candidates: ", name, " has shape ", tensor.sizes(),
                    "; it must be ", shape);
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "score_candidates: ", name, " has strides ", tensor.strides(),
                    "; it must be contiguous");
}

void check_floats(const at::Tensor& tensor, const std::string& name, at::IntArrayRef shape) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, "score_candidates: ", name, " is ", tensor.scalar_type(),
                   "; it must be float32");
  check_layout(tensor, name, shape);
}

int64_t rows_apart(const at::Tensor& tensor, const std::string& name, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "score_candidates: ", name, " has shape ", tensor.sizes(),
                    "; it must be ", shape);
  if (shape[0] < 2) {
    check_floats(tensor, name, shape);
    return 0;
  }
  check_floats(tensor.select(0, 0), name, shape.slice(1));
  return tensor.stride(0);
}

Table table_of(const at::Tensor& tensor, const std::string& name, int64_t num_items, const at::Tensor* scales) {
  TORCH_CHECK_VALUE(tensor.dim() == 2, "score_candidates: ", name, " has shape ", tensor.sizes(),
                    "; it must be [I, width]");
  const int64_t width = tensor.size(1);
  if (scales == nullptr) {
    check_floats(tensor, name, {num_items, width});
    return {tensor.const_data_ptr<float>(), nullptr, width};
  }
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kChar, "score_candidates: ", name, " is ", tensor.scalar_type(),
                   "; with scales it must be int8");
  check_layout(tensor, name, {num_items, width});
  check_floats(*scales, "the scales of " + name, {num_items});
  return {tensor.const_data_ptr<int8_t>(), scales->const_data_ptr<float>(), width};
}

const float* rows_of(const at::Tensor& tensor, const std::string& name, int64_t C) {
  TORCH_CHECK_VALUE(tensor.dim() == 2, "score_candidates: ", name, " has shape ", tensor.sizes(),
                    "; it must be [C, width]");
  check_floats(tensor, name, {C, tensor.size(1)});
  return tensor.const_data_ptr<float>();
}

void check_offsets(const int64_t* offsets, int64_t B, int64_t C) {
  TORCH_CHECK_VALUE(offsets[0] == 0, "score_candidates: offsets[0] is ", offsets[0], "; it must be 0");
  for (int64_t b = 0; b < B; ++b) {
    TORCH_CHECK_VALUE(offsets[b] <= offsets[b + 1], "score_candidates: offsets[", b + 1, "] is ", offsets[b + 1],
                      "; it must be at least offsets[", b, "], ", offsets[b]);
  }
  TORCH_CHECK_VALUE(offsets[B] == C, "score_candidates: offsets[", B, "] is ", offsets[B],
                    "; it must be the number of candidates, ", C);
}

void check_rows(const int64_t* rows, int64_t C, int64_t num_items) {
  for (int64_t c = 0; c < C; ++c) {
    TORCH_CHECK_VALUE(0 <= rows[c] && rows[c] < num_items, "score_candidates: rows[", c, "] is ", rows[c],
                      "; the tables have ", num_items, " rows");
  }
}

}  // namespace marquee::candidates
