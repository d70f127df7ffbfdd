// marquee::interaction_first_layer: schema, checks and the CPU path.
// Shapes: B requests, C candidates, K dot products, E dot-product width, H first hidden width.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "capability.h"
#include "interaction/cpu_rows.h"

namespace marquee::interaction {
namespace {

// Floats of `out` below which a second thread costs more than it brings.
constexpr int64_t kGrainFloats = 16384;

void check_operand(const at::Tensor& tensor, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, "interaction_first_layer: ", name, " is ",
                   tensor.scalar_type(), "; it must be float32");
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "interaction_first_layer: ", name, " has shape ", tensor.sizes(),
                    "; it must be ", shape);
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "interaction_first_layer: ", name, " has strides ", tensor.strides(),
                    "; it must be contiguous");
}

void check_operands(const at::Tensor& x, const at::Tensor& e, const at::Tensor& p, const at::Tensor& q,
                    const at::Tensor& w, const at::Tensor& offsets) {
  TORCH_CHECK_VALUE(x.dim() == 2, "interaction_first_layer: x has shape ", x.sizes(), "; it must be [C, H]");
  TORCH_CHECK_VALUE(q.dim() == 3, "interaction_first_layer: q has shape ", q.sizes(), "; it must be [B, K, E]");
  const int64_t C = x.size(0), H = x.size(1), B = q.size(0), K = q.size(1), E = q.size(2);
  check_operand(x, "x", {C, H});
  check_operand(e, "e", {C, E});
  check_operand(p, "p", {B, H});
  check_operand(q, "q", {B, K, E});
  check_operand(w, "w", {K, H});
  TORCH_CHECK_TYPE(offsets.scalar_type() == at::kLong || offsets.scalar_type() == at::kInt,
                   "interaction_first_layer: offsets is ", offsets.scalar_type(), "; it must be int64 or int32");
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) == B + 1, "interaction_first_layer: offsets has shape ",
                    offsets.sizes(), "; it must be [", B + 1, "]");
}

// The values matter for memory safety: a wrong offset would read another request's rows, or past the end.
void check_offsets(const int64_t* offsets, int64_t B, int64_t C) {
  TORCH_CHECK_VALUE(offsets[0] == 0, "interaction_first_layer: offsets[0] is ", offsets[0], "; it must be 0");
  for (int64_t b = 0; b < B; ++b) {
    TORCH_CHECK_VALUE(offsets[b] <= offsets[b + 1], "interaction_first_layer: offsets[", b + 1, "] is ",
                      offsets[b + 1], "; it must be at least offsets[", b, "], ", offsets[b]);
  }
  TORCH_CHECK_VALUE(offsets[B] == C, "interaction_first_layer: offsets[", B, "] is ", offsets[B],
                    "; it must be the number of candidates, ", C);
}

Rows rows_for(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::avx512:
      return rows_avx512;
    case CpuCapability::avx2:
      return rows_avx2;
    default:
      return rows_baseline;
  }
}

at::Tensor first_layer_cpu(const at::Tensor& x, const at::Tensor& e, const at::Tensor& p, const at::Tensor& q,
                           const at::Tensor& w, const at::Tensor& offsets) {
  check_operands(x, e, p, q, w, offsets);
  const at::Tensor offsets_long = offsets.to(at::kLong).contiguous();
  const int64_t* first = offsets_long.const_data_ptr<int64_t>();
  const int64_t C = x.size(0), H = x.size(1), B = q.size(0), K = q.size(1), E = q.size(2);
  check_offsets(first, B, C);

  at::Tensor out = at::empty_like(x);
  const Operands operands{x.const_data_ptr<float>(), e.const_data_ptr<float>(), p.const_data_ptr<float>(),
                          q.const_data_ptr<float>(), w.const_data_ptr<float>(), first,
                          out.mutable_data_ptr<float>(), H, E, K};
  const Rows rows = rows_for(cpu_capability());
  const int64_t grain = std::max<int64_t>(kTile, kGrainFloats / std::max<int64_t>(H, 1));
  at::parallel_for(0, C, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> dots(kTile * K);
    const int64_t request = std::upper_bound(first, first + B + 1, begin) - first - 1;
    rows(operands, begin, end, request, dots.data());
  });
  return out;
}

}  // namespace
}  // namespace marquee::interaction

TORCH_LIBRARY_FRAGMENT(marquee, library) {
  library.def(
      "interaction_first_layer(Tensor x, Tensor e, Tensor p, Tensor q, Tensor w, Tensor offsets) -> Tensor");
}

TORCH_LIBRARY_IMPL(marquee, CPU, library) {
  library.impl("interaction_first_layer", &marquee::interaction::first_layer_cpu);
}

// Serving only: backward through it says so, instead of silently giving no gradient.
TORCH_LIBRARY_IMPL(marquee, Autograd, library) {
  library.impl("interaction_first_layer", torch::autograd::autogradNotImplementedFallback());
}
