// marquee::decoder_step: schema, memory and threads of the CPU path.
// Shapes: T new tokens, B sequences, S stored tokens, D model width, H heads, K head width, F feed-forward width.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <immintrin.h>
#include <omp.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <thread>
#include <tuple>
#include <vector>

#include "capability.h"
#include "decoder/checks.h"
#include "decoder/step.h"

namespace marquee::decoder {

void barrier() {
#pragma omp barrier
}

void wait_for(const int32_t* layers, int32_t wanted) {
  constexpr int kSpins = 2000;  // about 30 us; then the other thread may need this core
  for (int spins = 0; __atomic_load_n(layers, __ATOMIC_ACQUIRE) < wanted; ++spins) {
    if (spins < kSpins) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
}

namespace {

Run run_for(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::avx512:
      return run_avx512;
    case CpuCapability::avx2:
      return run_avx2;
    default:
      return run_baseline;
  }
}

// Hands out parts of one allocation: several would be given back to the system and faulted in again at every call
// (glibc trims its heap by the largest block it has seen: 970 faults, 2 ms a call at 256 tokens).
struct Workspace {
  at::Tensor memory;
  float* at;

  Workspace(int64_t floats, const at::TensorOptions& options)
      : memory(at::empty({floats}, options)), at(memory.mutable_data_ptr<float>()) {}

  float* take(int64_t floats) {
    float* taken = at;
    at += padded(floats);
    return taken;
  }
};

std::vector<at::Tensor> kept_of(const Arguments& a) {
  const int64_t T = a.x.size(0), H = a.num_heads, K = a.x.size(1) / H;
  std::vector<at::Tensor> kept;
  for (int64_t i = 0; i < 2 * a.num_kept; ++i) {
    kept.push_back(at::empty({T, H, K}, a.x.options()));
  }
  return kept;
}

// The top layers' keys and values are given back, the others live as long as the call.
std::vector<Layer> layers_of(const Arguments& a, const std::vector<at::Tensor>& kept, Workspace& workspace) {
  const int64_t T = a.x.size(0), D = a.x.size(1), F = a.weights[7].size(0);
  const int64_t num_others = 2 * (num_layers(a) - a.num_kept);
  std::vector<Layer> layers;
  const Extra extra = cpu_extra();
  auto scales = a.scales.begin();
  for (int64_t l = 0; l < num_layers(a); ++l) {
    const auto at = [&](int64_t index) { return a.weights[l * kWeightsPerLayer + index].const_data_ptr<float>(); };
    const auto linear = [&](int64_t index, int64_t inputs, int64_t outputs) {
      const at::Tensor& packed = a.weights[l * kWeightsPerLayer + index];
      const bool is_int8 = packed.scalar_type() == at::kChar;
      return PackedWeights{packed.const_data_ptr(), is_int8 ? (scales++)->const_data_ptr<float>() : nullptr, inputs,
                           outputs, extra};
    };
    const auto stored = [&](int64_t index) {
      return a.stored.empty() ? nullptr : a.stored[index].const_data_ptr<float>();
    };
    const auto written = [&](int64_t index) {
      return index < num_others ? workspace.take(T * D) : kept[index - num_others].mutable_data_ptr<float>();
    };
    float *keys = written(2 * l), *values = written(2 * l + 1);
    layers.push_back({at(0), at(1), at(4), at(5), linear(2, D, 3 * D), linear(3, D, D), linear(6, D, F),
                      linear(8, F, D), at(7), at(9), stored(2 * l), stored(2 * l + 1), keys, values});
  }
  return layers;
}

// Rows of a block: as many as make equal shares for the threads, each small enough for the second cache.
int64_t block_rows_for(const Step& step, int64_t num_threads) {
  const bool is_amx = cpu_extra() == Extra::amx;
  const int64_t num_rows = step.all.count, most = is_amx ? kMostBlockRowsOfAmx : kMostBlockRows;
  const int64_t rounds = (num_rows + most * num_threads - 1) / (most * num_threads);
  const int64_t num_blocks = std::max<int64_t>(1, rounds * num_threads);
  const int64_t equal = std::max<int64_t>(1, (num_rows + num_blocks - 1) / num_blocks);
  if (num_blocks != 2 || step.B != 1 || step.branches) {
    return equal;
  }
  // The second half of a sequence attends to three times as many keys: it gets fewer rows. In whole register tiles: 136
  // and 120 of 256 rows take 3.95 and 3.89 ms, 128 and 128 took 3.77 and 4.13. On AMX weights cost about half of that.
  const int64_t tile = is_amx ? 16 : 8, key_cost = is_amx ? 2 : 1;
  const int64_t row_cost = 8 * step.D + 4 * step.F + 4 * num_rows;  // on average, where a key costs 8
  const int64_t balanced = (num_rows / 2 + key_cost * num_rows * num_rows / row_cost + tile / 2) / tile * tile;
  return std::clamp(balanced, equal, std::max(equal, most));
}

int64_t shared_floats(const Step& step) { return kFewRows * (scratch_stride(step.D) + hidden_stride(step)); }

int64_t workspace_floats(const Arguments& a, const Step& step, int64_t num_threads) {
  const int64_t of_rows = padded(step.all.count * step.D), num_others = 2 * (num_layers(a) - a.num_kept);
  return (num_others + 1) * of_rows + padded(step.last.count * step.D) + num_threads * step.scratch_floats +
         shared_floats(step);
}

void run_parallel(Step& step, Workspace& workspace, int64_t num_threads) {
  step.all.queries = workspace.take(step.all.count * step.D);
  step.last.queries = workspace.take(step.last.count * step.D);
  step.scratch = workspace.take(num_threads * step.scratch_floats);
  step.shared.attended = workspace.take(shared_floats(step));
  step.shared.hidden = step.shared.attended + kFewRows * scratch_stride(step.D);
  std::vector<int32_t> done(step.num_blocks, 0);
  int64_t counters[2] = {0, 0};
  step.done = done.data();
  step.counters = counters;
  const Run run = run_for(cpu_capability());
#pragma omp parallel num_threads(num_threads)
  run(step, omp_get_thread_num(), omp_get_num_threads());
}

std::tuple<at::Tensor, std::vector<at::Tensor>> decoder_step_cpu(
    const at::Tensor& x, const at::Tensor& offsets, const at::Tensor& rotations, at::TensorList weights,
    at::TensorList scales, at::TensorList stored, const std::optional<at::Tensor>& stored_offsets, int64_t num_heads,
    bool branches, int64_t window, int64_t num_prefix, bool last_only, int64_t num_kept) {
  const Arguments a{x,         offsets,  rotations, weights,    scales,    stored,  stored_offsets,
                    num_heads, branches, window,    num_prefix, last_only, num_kept};
  check_operands(a);
  const int64_t T = x.size(0), D = x.size(1);
  const std::vector<int64_t> of_new = checked_offsets(offsets, "offsets", T);
  const int64_t B = int64_t(of_new.size()) - 1;
  const std::vector<int64_t> of_stored = stored_offsets.has_value()
                                             ? checked_offsets(*stored_offsets, "stored_offsets", stored[0].size(0))
                                             : std::vector<int64_t>(B + 1, 0);
  check_positions(a, of_new, of_stored);

  const std::vector<at::Tensor> kept = kept_of(a);
  const at::Tensor residual = x.clone(), last = at::empty({last_only ? B : 0, D}, x.options());
  std::vector<int64_t> first(B, 0), last_token(B), last_offsets(B + 1);
  for (int64_t b = 0; b <= B; ++b) {
    last_offsets[b] = b;
  }
  for (int64_t b = 0; b < B; ++b) {
    last_token[b] = of_new[b + 1] - of_new[b] - 1;
  }
  if (T > 0) {
    const int64_t num_threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    Step step{};
    step.B = B;
    step.D = D;
    step.H = num_heads;
    step.K = D / num_heads;
    step.F = weights[7].size(0);
    step.num_layers = num_layers(a);
    step.final_weight = weights[weights.size() - 2].const_data_ptr<float>();
    step.final_bias = weights[weights.size() - 1].const_data_ptr<float>();
    step.rotations = rotations.const_data_ptr<float>();
    step.offsets = of_new.data();
    step.stored_offsets = of_stored.data();
    step.branches = branches;
    step.last_only = last_only;
    step.window = window;
    step.num_prefix = num_prefix;
    step.all = {T, of_new.data(), first.data(), residual.mutable_data_ptr<float>(), nullptr};
    step.last = {last.size(0), last_offsets.data(), last_token.data(), last.mutable_data_ptr<float>(), nullptr};
    step.block_rows = block_rows_for(step, num_threads);
    step.num_blocks = (T + step.block_rows - 1) / step.block_rows;
    step.scratch_floats = padded(scratch_floats(step));
    Workspace workspace(workspace_floats(a, step, num_threads), x.options());
    const std::vector<Layer> layers = layers_of(a, kept, workspace);
    step.layers = layers.data();
    run_parallel(step, workspace, num_threads);
  }
  return {last_only ? last : residual, kept};
}

}  // namespace
}  // namespace marquee::decoder

TORCH_LIBRARY_FRAGMENT(marquee, library) {
  library.def(
      "decoder_step(Tensor x, Tensor offsets, Tensor rotations, Tensor[] weights, Tensor[] scales, Tensor[] stored, "
      "Tensor? stored_offsets, int num_heads, bool branches, int window, int num_prefix, bool last_only, int num_kept) "
      "-> (Tensor hidden, Tensor[] kept)");
}

TORCH_LIBRARY_IMPL(marquee, CPU, library) {
  library.impl("decoder_step", &marquee::decoder::decoder_step_cpu);
}

// Serving only: backward through it says so, instead of silently giving no gradient.
TORCH_LIBRARY_IMPL(marquee, Autograd, library) {
  library.impl("decoder_step", torch::autograd::autogradNotImplementedFallback());
}
