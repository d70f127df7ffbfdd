// marquee::linear: schema, checks and the CPU path.
// Shapes: R rows, K inputs, N outputs.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <omp.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <optional>

#include "capability.h"
#include "linear/cpu_rows.h"

namespace marquee::linear {
namespace {

// Products below which a second thread costs more than it brings; a row alone counts as kLeastRows, since reading the
// weights takes its time.
constexpr int64_t kGrainProducts = 1 << 21, kLeastRows = 16;
// Panels that a thread takes at once, where there are fewer rows than one block has.
constexpr int64_t kTaskPanels = 8;

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

// Blocks are handed out by a counter: a core that somebody else also uses takes fewer.
void multiply_all(const Operands& operands, int64_t R) {
  const int64_t K = operands.weights.num_inputs, panels = num_panels(operands.weights.num_outputs);
  const int64_t blocks_down = (R + kTile - 1) / kTile, block_panels = R > kTile ? panels : kTaskPanels;
  const int64_t blocks_across = (panels + block_panels - 1) / block_panels, num_blocks = blocks_down * blocks_across;
  const int64_t worth = std::max(R, kLeastRows) * K * panels * kPanel / kGrainProducts;
  const int64_t most = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int num_threads = static_cast<int>(std::clamp<int64_t>(std::min(worth, num_blocks), 1, most));
  const Rows rows = rows_for(cpu_capability());
  const int64_t bytes = operands.weights.scales == nullptr ? 0 : prepared_bytes(kTile, K);  // float32 rows stay
  const at::Tensor scratch = at::empty({num_threads * bytes}, at::kByte);
  std::atomic<int64_t> counter{0};
#pragma omp parallel num_threads(num_threads)
  {
    uint8_t* own = scratch.mutable_data_ptr<uint8_t>() + omp_get_thread_num() * bytes;
    for (int64_t block = counter.fetch_add(1); block < num_blocks; block = counter.fetch_add(1)) {
      const int64_t row = block / blocks_across * kTile, panel = block % blocks_across * block_panels;
      rows(operands, {row, std::min(row + kTile, R), panel, std::min(panel + block_panels, panels)}, own);
    }
  }
}

at::Tensor linear_cpu(const at::Tensor& x, const at::Tensor& packed, const std::optional<at::Tensor>& scales,
                      const std::optional<at::Tensor>& bias, int64_t num_outputs) {
  TORCH_CHECK_VALUE(x.dim() == 2, "linear: x has shape ", x.sizes(), "; it must be [R, K]");
  TORCH_CHECK_VALUE(0 < num_outputs && num_outputs <= INT32_MAX, "linear: num_outputs is ", num_outputs,
                    "; it must be positive, and fit 32 bits");
  const int64_t R = x.size(0), K = x.size(1), N = num_outputs, panels = num_panels(N), columns = panels * kPanel;
  check(x, "x", at::kFloat, {R, K});
  // float32 by float32's own instructions: what this is asked for are a few rows, which AMX has to split weights for.
  const Extra extra = scales.has_value() ? cpu_extra() : Extra::none;
  Operands operands{x.const_data_ptr<float>(), {packed.const_data_ptr(), nullptr, K, N, extra}, nullptr, nullptr};
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
  multiply_all(operands, R);
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
