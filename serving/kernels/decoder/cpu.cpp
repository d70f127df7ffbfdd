// marquee::decoder_step: schema, memory and threads of the CPU path.
// Shapes: T new tokens, B sequences, S stored tokens, D model width, H heads, K head width, F feed-forward width.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
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

// Keys and values of the new tokens: those of the top layers are given back, the others live as long as the call.
struct KeysValues {
  std::vector<at::Tensor> kept;
  at::Tensor others;

  KeysValues(const Arguments& a) {
    const int64_t T = a.x.size(0), D = a.x.size(1), H = a.num_heads;
    others = at::empty({2 * (num_layers(a) - a.num_kept), T, D}, a.x.options());
    for (int64_t i = 0; i < 2 * a.num_kept; ++i) {
      kept.push_back(at::empty({T, H, D / H}, a.x.options()));
    }
  }

  float* of(int64_t index) const {  // index 2 l: keys of layer l; 2 l + 1: values
    const int64_t num_others = others.size(0);
    return index < num_others ? others.mutable_data_ptr<float>() + index * others.stride(0)
                              : kept[index - num_others].mutable_data_ptr<float>();
  }
};

std::vector<Layer> layers_of(const Arguments& a, const KeysValues& keys_values) {
  const int64_t D = a.x.size(1), F = a.weights[7].size(0);
  std::vector<Layer> layers;
  for (int64_t l = 0; l < num_layers(a); ++l) {
    const auto at = [&](int64_t index) { return a.weights[l * kWeightsPerLayer + index].const_data_ptr<float>(); };
    const auto stored = [&](int64_t index) {
      return a.stored.empty() ? nullptr : a.stored[index].const_data_ptr<float>();
    };
    layers.push_back({at(0), at(1), at(4), at(5), {at(2), D, 3 * D}, {at(3), D, D}, {at(6), D, F}, {at(8), F, D},
                      at(7), at(9), stored(2 * l), stored(2 * l + 1), keys_values.of(2 * l),
                      keys_values.of(2 * l + 1)});
  }
  return layers;
}

// Rows of a block: as many as make equal shares for the threads, each small enough for the second cache.
int64_t block_rows_for(int64_t num_rows, int64_t num_threads) {
  const int64_t rounds = (num_rows + kMostBlockRows * num_threads - 1) / (kMostBlockRows * num_threads);
  const int64_t num_blocks = std::max<int64_t>(1, rounds * num_threads);
  return std::max<int64_t>(1, (num_rows + num_blocks - 1) / num_blocks);
}

void run_parallel(Step& step, const at::TensorOptions& options, int64_t num_threads) {
  const int64_t rows = std::max(step.block_rows, kFewRows), shared_row = scratch_stride(step.D) + hidden_stride(step);
  step.scratch_floats = padded(scratch_floats(step, rows));
  const at::Tensor scratch = at::empty({num_threads * step.scratch_floats + kFewRows * shared_row}, options);
  step.scratch = scratch.mutable_data_ptr<float>();
  step.shared.attended = step.scratch + num_threads * step.scratch_floats;
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

  const KeysValues keys_values(a);
  const at::Tensor residual = x.clone(), queries = at::empty_like(x);
  const at::Tensor last = at::empty({last_only ? B : 0, D}, x.options()), last_queries = at::empty_like(last);
  const std::vector<Layer> layers = layers_of(a, keys_values);
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
    step.layers = layers.data();
    step.final_weight = weights[weights.size() - 2].const_data_ptr<float>();
    step.final_bias = weights[weights.size() - 1].const_data_ptr<float>();
    step.rotations = rotations.const_data_ptr<float>();
    step.offsets = of_new.data();
    step.stored_offsets = of_stored.data();
    step.branches = branches;
    step.last_only = last_only;
    step.window = window;
    step.num_prefix = num_prefix;
    step.all = {T, of_new.data(), first.data(), residual.mutable_data_ptr<float>(), queries.mutable_data_ptr<float>()};
    step.last = {last.size(0), last_offsets.data(), last_token.data(), last.mutable_data_ptr<float>(),
                 last_queries.mutable_data_ptr<float>()};
    step.block_rows = block_rows_for(T, num_threads);
    step.num_blocks = (T + step.block_rows - 1) / step.block_rows;
    run_parallel(step, x.options(), num_threads);
  }
  return {last_only ? last : residual, keys_values.kept};
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
