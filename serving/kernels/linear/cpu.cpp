// marquee::linear: schema, checks and the CPU path.
// Shapes: R rows, K inputs, N outputs.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "capability.h"
#include "linear/cpu_rows.h"

namespace marquee::linear {
namespace {

// Products below which a second thread costs more than it brings.
constexpr int64_t kGrainProducts = 1 << 21;

void check(const at::Tensor& tensor, const char* name, at::ScalarType dtype, at::IntArrayRef shape) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, "linear: ", name, " is ", tensor.scalar_type(), "; it must be ",
                   dtype);
  TORCH_CHECK_VALUE(tensor.sizes() == shape, "linear: ", name, " has shape ", tensor.sizes(), "; it must be ", shape);
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "linear: ", name, " has strides ", tensor.strides(),
                    "; it must be contiguous");
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

at::Tensor linear_cpu(const at::Tensor& x, const at::Tensor& packed, const std::optional<at::Tensor>& scales,
                      const std::optional<at::Tensor>& bias, int64_t num_outputs) {
  TORCH_CHECK_VALUE(x.dim() == 2, "linear: x has shape ", x.sizes(), "; it must be [R, K]");
  TORCH_CHECK_VALUE(0 < num_outputs && num_outputs <= INT32_MAX, "linear: num_outputs is ", num_outputs,
                    "; it must be positive, and fit 32 bits");
  const int64_t R = x.size(0), K = x.size(1), N = num_outputs, panels = num_panels(N), columns = panels * kPanel;
  check(x, "x", at::kFloat, {R, K});
  Operands operands{x.const_data_ptr<float>(), {packed.const_data_ptr(), nullptr, K, N, cpu_vnni()}, nullptr, nullptr};
  if (scales.has_value()) {
    check(packed, "packed", at::kChar, {panels, round_up(K, 4) / 4, kPanel, 4});
    check(*scales, "scales", at::kFloat, {2, columns});
    operands.weights.scales = scales->const_data_ptr<float>();
  } else {
    check(packed, "packed", at::kFloat, {panels, K, kPanel});
  }
  if (bias.has_value()) {
    check(*bias, "bias", at::kFloat, {N});
    operands.bias = bias->const_data_ptr<float>();
  }
  at::Tensor out = at::empty({R, N}, x.options());
  operands.out = out.mutable_data_ptr<float>();
  const Rows rows = rows_for(cpu_capability());
  const int64_t grain = std::max<int64_t>(1, kGrainProducts / std::max<int64_t>(K * columns, 1));
  at::parallel_for(0, R, grain, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> scratch(scales.has_value() ? kTile * byte_stride(K) : 0);
    for (int64_t row = begin; row < end; row += kTile) {
      rows(operands, row, std::min(row + kTile, end), scratch.data());
    }
  });
  return out;
}

}  // namespace
}  // namespace marquee::linear

TORCH_LIBRARY_FRAGMENT(marquee, library) {
  library.def("linear(Tensor x, Tensor packed, Tensor? scales, Tensor? bias, int num_outputs) -> Tensor");
}

TORCH_LIBRARY_IMPL(marquee, CPU, library) { library.impl("linear", &marquee::linear::linear_cpu); }

// Serving only: backward through it says so, instead of silently giving no gradient.
TORCH_LIBRARY_IMPL(marquee, Autograd, library) {
  library.impl("linear", torch::autograd::autogradNotImplementedFallback());
}
