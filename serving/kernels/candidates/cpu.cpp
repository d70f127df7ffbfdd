// marquee::score_candidates: schema, memory and threads of the CPU path.
// Shapes: B requests, C candidates, I item rows, K dot products, E dot-product width, H first hidden width,
// F width of the candidates' features, D of crossed candidates, N tasks.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>
#include <omp.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "candidates/checks.h"
#include "candidates/tiles.h"
#include "capability.h"
#include "linear/panels.h"

namespace marquee::candidates {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

// Where the weights of `weights` are taken from, one linear layer after the other.
class Weights {
 public:
  Weights(at::TensorList weights, at::TensorList scales) : weights_(weights), scales_(scales) {}

  // A layer's packed weights; `outputs` is known from its bias or from what it adds to.
  PackedWeights take(int64_t inputs, int64_t outputs, bool may_be_int8 = true) {
    TORCH_CHECK_VALUE(at_ < weights_.size(), "score_candidates: weights has ", weights_.size(),
                      " tensors; features and crossed candidates need packed weights each");
    const at::Tensor& packed = weights_[at_];
    const std::string name = "weights[" + std::to_string(at_++) + "]";
    PackedWeights taken{packed.const_data_ptr(), nullptr, inputs, outputs, cpu_extra()};
    if (may_be_int8 && packed.scalar_type() == at::kChar) {
      check_layout(packed, name, {num_panels(outputs), round_up(inputs, 4) / 4, kPanel, 4});
      taken.scales = take_scales(name, outputs);
    } else {
      check_floats(packed, name, {num_panels(outputs), inputs, kPanel});
    }
    return taken;
  }

  Linear take_with_bias(int64_t inputs) {
    TORCH_CHECK_VALUE(weights_.size() >= at_ + 2, "score_candidates: weights has ", weights_.size(),
                      " tensors; every layer after the first needs packed weights and a bias");
    const at::Tensor& bias = weights_[at_ + 1];
    const std::string name = "weights[" + std::to_string(at_ + 1) + "]";
    TORCH_CHECK_VALUE(bias.dim() == 1, "score_candidates: ", name, " has shape ", bias.sizes(), "; it must be [outputs]");
    check_floats(bias, name, {bias.size(0)});
    const PackedWeights taken = take(inputs, bias.size(0));
    biases_.emplace_back(num_panels(bias.size(0)) * kPanel, 0.0f);
    std::copy_n(bias.const_data_ptr<float>(), bias.size(0), biases_.back().begin());
    ++at_;
    return {taken, biases_.back().data()};
  }

  bool empty() const { return at_ == weights_.size(); }
  std::size_t num_scales() const { return scale_; }

 private:
  const float* take_scales(const std::string& name, int64_t outputs) {
    TORCH_CHECK_VALUE(scale_ < scales_.size(), "score_candidates: ", name, " is int8; scales has no more than ",
                      scales_.size(), " tensors");
    const at::Tensor& scales = scales_[scale_];
    check_floats(scales, "scales[" + std::to_string(scale_++) + "]", {2, num_panels(outputs) * kPanel});
    return scales.const_data_ptr<float>();
  }

  at::TensorList weights_, scales_;
  std::size_t at_ = 0, scale_ = 0;
  std::vector<std::vector<float>> biases_;
};

// dot_weights [K, H], then packed feature weights [num_panels(H), F, 16], as one packed layer of K + F inputs: two
// separate layers would cost a second pass over the activations. It is 57 kB on the reference workload: done at each call.
at::Tensor join(const at::Tensor& dot_weights, const float* features, int64_t F) {
  const int64_t K = dot_weights.size(0), H = dot_weights.size(1);
  at::Tensor joined = at::empty({num_panels(H), K + F, kPanel}, dot_weights.options());
  const float* dots = dot_weights.const_data_ptr<float>();
  float* to = joined.mutable_data_ptr<float>();
  for (int64_t panel = 0; panel < num_panels(H); ++panel) {
    const int64_t column = panel * kPanel, real = std::min(kPanel, H - column);
    for (int64_t k = 0; k < K; ++k, to += kPanel) {
      std::fill(std::copy_n(dots + k * H + column, real, to), to + kPanel, 0.0f);
    }
    if (F > 0) {
      to = std::copy_n(features + panel * F * kPanel, F * kPanel, to);
    }
  }
  return joined;
}

ScoreTile score_tile_for(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::avx512:
      return score_tile_avx512;
    case CpuCapability::avx2:
      return score_tile_avx2;
    default:
      return score_tile_baseline;
  }
}

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

int64_t tile_candidates(int64_t num_candidates, int64_t num_threads) {
  if (cpu_extra() != Extra::amx) {
    return kTileCandidates;
  }
  const int64_t share = divide_up(num_candidates, num_threads), rounds = divide_up(share, kMostTileCandidates);
  return round_up(divide_up(share, rounds), kGroupRows / 2);
}

// Each thread has a first tile; the others are handed out by a counter, a tile ahead: a core that somebody else also
// uses takes fewer. By the counter alone, the thread that comes first would have two before another has come.
void score(Operands& operands) {
  const ScoreTile score_tile = score_tile_for(cpu_capability());
  const int64_t most = at::in_parallel_region() ? 1 : at::get_num_threads();
  operands.tile = tile_candidates(operands.num_candidates, most);
  const int64_t num_tiles = divide_up(operands.num_candidates, operands.tile);
  const int num_threads = static_cast<int>(std::min<int64_t>(num_tiles, most));
  const int64_t floats = scratch_floats(operands);
  const at::Tensor scratch = at::empty({num_threads * floats}, at::kFloat);  // its rows start cache lines
  std::atomic<int64_t> counter{0};
#pragma omp parallel num_threads(num_threads)
  {
    Worker worker{scratch.mutable_data_ptr<float>() + omp_get_thread_num() * floats, -1};
    const int64_t threads = omp_get_num_threads();
    for (int64_t tile = omp_get_thread_num(); tile < num_tiles;) {
      const int64_t next = threads + counter.fetch_add(1);
      score_tile(operands, worker, tile, next);
      tile = next;
    }
  }
}

// The layers after the first, the head last; says in `o` how wide the widest is.
std::vector<Linear> take_layers(Weights& taken, Operands& o, int64_t num_tasks) {
  std::vector<Linear> layers;
  o.widest = o.x.width;
  for (int64_t width = o.x.width; layers.empty() || !taken.empty(); width = layers.back().weights.num_outputs) {
    layers.push_back(taken.take_with_bias(width));
    o.widest = std::max(o.widest, layers.back().weights.num_outputs);
  }
  o.widest_input = std::max(o.widest, o.crossing.num_inputs);
  const int64_t outputs = layers.back().weights.num_outputs;
  TORCH_CHECK_VALUE(outputs == num_tasks, "score_candidates: the last layer has ", outputs, " outputs; num_tasks is ",
                    num_tasks);
  return layers;
}

// p [B, H] and q [B, K, E]; without q, those of rows [B, H + K E] that hold one behind the other.
std::pair<at::Tensor, at::Tensor> profile_of(const at::Tensor& p, const OptionalTensor& q, const at::Tensor& x_table,
                                             const at::Tensor& e_table, const at::Tensor& dot_weights) {
  if (q) {
    TORCH_CHECK_VALUE(q->dim() == 3, "score_candidates: q has shape ", q->sizes(), "; it must be [B, K, E]");
    return {p, *q};
  }
  TORCH_CHECK_VALUE(x_table.dim() == 2 && e_table.dim() == 2 && dot_weights.dim() == 2,
                    "score_candidates: x_table, e_table and dot_weights have shapes ", x_table.sizes(), ", ",
                    e_table.sizes(), ", ", dot_weights.sizes(), "; they must be [I, H], [I, E] and [K, H]");
  const int64_t H = x_table.size(1), K = dot_weights.size(0), E = e_table.size(1), stride = H + K * E;
  TORCH_CHECK_VALUE(p.dim() == 2 && p.size(1) == stride && p.is_contiguous(), "score_candidates: p has shape ",
                    p.sizes(), " and there is no q; it must be [B, ", stride, "], contiguous, its last columns q");
  const int64_t B = p.size(0);
  return {p.as_strided({B, H}, {stride, 1}),
          p.as_strided({B, K, E}, {stride, E, 1}, p.storage_offset() + H)};
}

at::Tensor score_candidates_cpu(const at::Tensor& rows, const at::Tensor& offsets, const at::Tensor& x_table,
                                const at::Tensor& e_table, at::TensorList table_scales, const at::Tensor& p_given,
                                const OptionalTensor& q_given, const at::Tensor& dot_weights, const OptionalTensor& features,
                                const OptionalTensor& crossed, at::TensorList weights, at::TensorList scales,
                                int64_t num_tasks) {
  TORCH_CHECK_VALUE(rows.dim() == 1, "score_candidates: rows has shape ", rows.sizes(), "; it must be [C]");
  TORCH_CHECK_TYPE(rows.scalar_type() == at::kLong, "score_candidates: rows is ", rows.scalar_type(),
                   "; it must be int64");
  const auto [p, q] = profile_of(p_given, q_given, x_table, e_table, dot_weights);
  TORCH_CHECK_TYPE(offsets.scalar_type() == at::kLong || offsets.scalar_type() == at::kInt,
                   "score_candidates: offsets is ", offsets.scalar_type(), "; it must be int64 or int32");
  TORCH_CHECK_VALUE(table_scales.empty() || table_scales.size() == 2, "score_candidates: table_scales has ",
                    table_scales.size(), " tensors; it must have 2, or none for float32 tables");
  const int64_t C = rows.size(0), B = q.size(0), K = q.size(1), I = x_table.size(0);
  check_layout(offsets, "offsets", {B + 1});
  check_layout(rows, "rows", {C});
  Operands o{};
  o.x = table_of(x_table, "x_table", I, table_scales.empty() ? nullptr : &table_scales[0]);
  o.e = table_of(e_table, "e_table", I, table_scales.empty() ? nullptr : &table_scales[1]);
  const int64_t H = o.x.width, E = o.e.width;
  o.p_stride = rows_apart(p, "p", {B, H});
  o.q_stride = rows_apart(q, "q", {B, K, E});
  check_floats(dot_weights, "dot_weights", {K, H});

  Weights taken(weights, scales);
  PackedWeights feature_layer{};
  if (features) {
    o.features = rows_of(*features, "features", C);
    feature_layer = taken.take(features->size(1), H, false);
  }
  if (crossed) {
    o.crossed = rows_of(*crossed, "crossed", C);
    o.crossing = taken.take(crossed->size(1), H);
  }
  const std::vector<Linear> layers = take_layers(taken, o, num_tasks);
  TORCH_CHECK_VALUE(taken.num_scales() == scales.size(), "score_candidates: scales has ", scales.size(), " tensors; ",
                    taken.num_scales(), " weights are int8");

  const at::Tensor offsets_long = offsets.to(at::kLong);
  o.rows = rows.const_data_ptr<int64_t>();
  o.offsets = offsets_long.const_data_ptr<int64_t>();
  check_offsets(o.offsets, B, C);
  check_rows(o.rows, C, I);
  const at::Tensor joined = join(dot_weights, static_cast<const float*>(feature_layer.data),
                                 feature_layer.num_inputs);
  o.num_dots = K;
  o.met = {joined.const_data_ptr(), nullptr, K + feature_layer.num_inputs, H, Extra::none};
  o.p = p.const_data_ptr<float>();
  o.q = q.const_data_ptr<float>();
  o.layers = layers.data();
  o.num_layers = static_cast<int64_t>(layers.size());
  o.num_requests = B;
  o.num_candidates = C;
  at::Tensor logits = at::empty({C, num_tasks}, p.options());
  o.logits = logits.mutable_data_ptr<float>();
  if (C > 0) {
    score(o);
  }
  return logits;
}

}  // namespace

int64_t scratch_floats(const Operands& o) {
  // The dot products are stored by whole panels, so a row of `met` has room for those at least.
  const int64_t strides = scratch_stride(o.e.width) + scratch_stride(o.met.num_inputs) + 2 * scratch_stride(o.widest);
  const int64_t floats = num_panels(o.num_dots) * kPanel * o.e.width + o.tile * strides +
                         num_panels(o.tile) * kPanel + prepared_bytes(o.tile, o.widest_input) / 4;
  return num_panels(floats) * kPanel;
}

}  // namespace marquee::candidates

TORCH_LIBRARY_FRAGMENT(marquee, library) {
  library.def(
      "score_candidates(Tensor rows, Tensor offsets, Tensor x_table, Tensor e_table, Tensor[] table_scales, Tensor p, "
      "Tensor? q, Tensor dot_weights, Tensor? features, Tensor? crossed, Tensor[] weights, Tensor[] scales, "
      "int num_tasks) -> Tensor");
}

TORCH_LIBRARY_IMPL(marquee, CPU, library) {
  library.impl("score_candidates", &marquee::candidates::score_candidates_cpu);
}

// Serving only: backward through it says so, instead of silently giving no gradient.
TORCH_LIBRARY_IMPL(marquee, Autograd, library) {
  library.impl("score_candidates", torch::autograd::autogradNotImplementedFallback());
}
