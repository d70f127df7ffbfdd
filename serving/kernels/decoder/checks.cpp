// Shapes: T new tokens, B sequences, S stored tokens, D model width, H heads, K head width, F feed-forward width.
#include "decoder/checks.h"

#include <c10/util/Exception.h>

#include <string>

#include "linear/panels.h"

namespace marquee::decoder {
namespace {

#define OP "decoder_step: "

void check_floats(const at::Tensor& tensor, const std::string& name) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, OP, name, " is ", tensor.scalar_type(), "; it must be float32");
  TORCH_CHECK_VALUE(tensor.is_contiguous(), OP, name, " has strides ", tensor.strides(), "; it must be contiguous");
}

void check_operand(const at::Tensor& tensor, const std::string& name, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, OP, name, " has shape ", tensor.sizes(), "; it must be ", shape);
  check_floats(tensor, name);
}

// Packed float32 weights, or int8 ones with the next of the scales.
void check_packed(const Arguments& a, int64_t index, const char* name, int64_t outputs, int64_t inputs,
                  int64_t* num_scales) {
  const at::Tensor& packed = a.weights[index];
  const std::string what = "weights[" + std::to_string(index) + "], " + name + ", packed,";
  if (packed.scalar_type() != at::kChar) {
    check_operand(packed, what, {num_panels(outputs), inputs, kPanel});
    return;
  }
  const std::vector<int64_t> shape{num_panels(outputs), round_up(inputs, 4) / 4, kPanel, 4};
  TORCH_CHECK_VALUE(packed.sizes() == at::IntArrayRef(shape), OP, what, " has shape ", packed.sizes(),
                    "; int8 must be ", at::IntArrayRef(shape));
  TORCH_CHECK_VALUE(packed.is_contiguous(), OP, what, " has strides ", packed.strides(), "; it must be contiguous");
  TORCH_CHECK_VALUE(*num_scales < int64_t(a.scales.size()), OP, what, " is int8; there are no more than ",
                    a.scales.size(), " scales");
  check_operand(a.scales[*num_scales], "scales[" + std::to_string(*num_scales) + "]",
                {2, num_panels(outputs) * kPanel});
  ++*num_scales;
}

void check_layer(const Arguments& a, int64_t layer, int64_t D, int64_t F, int64_t* num_scales) {
  const auto check = [&](int64_t at, const char* name, at::IntArrayRef shape) {
    const int64_t index = layer * kWeightsPerLayer + at;
    check_operand(a.weights[index], "weights[" + std::to_string(index) + "], " + name + ",", shape);
  };
  const auto check_linear = [&](int64_t at, const char* name, int64_t outputs, int64_t inputs) {
    check_packed(a, layer * kWeightsPerLayer + at, name, outputs, inputs, num_scales);
  };
  check(0, "norm1.weight", {D});
  check(1, "norm1.bias", {D});
  check_linear(2, "qkv", 3 * D, D);
  check_linear(3, "out", D, D);
  check(4, "norm2.weight", {D});
  check(5, "norm2.bias", {D});
  check_linear(6, "feed-forward 1", F, D);
  check(7, "feed-forward 1, bias", {F});
  check_linear(8, "feed-forward 2", D, F);
  check(9, "feed-forward 2, bias", {D});
}

void check_weights(const Arguments& a, int64_t D) {
  const int64_t count = a.weights.size();
  TORCH_CHECK_VALUE(count >= 2 + kWeightsPerLayer && (count - 2) % kWeightsPerLayer == 0, OP, "there are ", count,
                    " weights; it must be 10 for each layer and 2 of the final norm");
  const at::Tensor& bias = a.weights[7];
  TORCH_CHECK_VALUE(bias.dim() == 1 && bias.size(0) > 0, OP, "weights[7], feed-forward 1, bias, has shape ",
                    bias.sizes(), "; it must be [F]");
  int64_t num_scales = 0;
  for (int64_t layer = 0; layer < num_layers(a); ++layer) {
    check_layer(a, layer, D, bias.size(0), &num_scales);
  }
  TORCH_CHECK_VALUE(num_scales == int64_t(a.scales.size()), OP, "there are ", a.scales.size(), " scales; ", num_scales,
                    " weights are int8");
  check_operand(a.weights[count - 2], "the final norm's weight", {D});
  check_operand(a.weights[count - 1], "the final norm's bias", {D});
}

void check_stored(const Arguments& a, int64_t D) {
  TORCH_CHECK_VALUE(a.stored_offsets.has_value() == !a.stored.empty(), OP, "there are ", a.stored.size(),
                    " stored keys and values", a.stored_offsets.has_value() ? " but stored_offsets" : " and no stored_offsets",
                    "; it must be both or neither");
  TORCH_CHECK_VALUE(!a.branches || !a.stored.empty(), OP, "branches continue stored tokens; there are none");
  if (a.stored.empty()) {
    return;
  }
  TORCH_CHECK_VALUE(int64_t(a.stored.size()) == 2 * num_layers(a), OP, "there are ", a.stored.size(),
                    " stored keys and values; it must be 2 for each layer, ", 2 * num_layers(a));
  TORCH_CHECK_VALUE(a.stored[0].dim() == 3, OP, "stored[0] has shape ", a.stored[0].sizes(), "; it must be [S, H, K]");
  for (size_t i = 0; i < a.stored.size(); ++i) {
    check_operand(a.stored[i], "stored[" + std::to_string(i) + "]",
                  {a.stored[0].size(0), a.num_heads, D / a.num_heads});
  }
}

}  // namespace

std::vector<int64_t> checked_offsets(const at::Tensor& offsets, const char* what, int64_t total) {
  TORCH_CHECK_TYPE(offsets.scalar_type() == at::kLong || offsets.scalar_type() == at::kInt, OP, what, " is ",
                   offsets.scalar_type(), "; it must be int64 or int32");
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.size(0) >= 1, OP, what, " has shape ", offsets.sizes(),
                    "; it must be [B + 1]");
  const at::Tensor longs = offsets.to(at::kLong).contiguous();
  const int64_t* first = longs.const_data_ptr<int64_t>();
  std::vector<int64_t> checked(first, first + longs.numel());
  TORCH_CHECK_VALUE(checked[0] == 0, OP, what, "[0] is ", checked[0], "; it must be 0");
  for (size_t b = 1; b < checked.size(); ++b) {
    TORCH_CHECK_VALUE(checked[b - 1] <= checked[b], OP, what, "[", b, "] is ", checked[b], "; it must be at least ",
                      what, "[", b - 1, "], ", checked[b - 1]);
  }
  TORCH_CHECK_VALUE(checked.back() == total, OP, what, "[", checked.size() - 1, "] is ", checked.back(),
                    "; it must be the number of its tokens, ", total);
  return checked;
}

void check_operands(const Arguments& a) {
  TORCH_CHECK_VALUE(a.x.dim() == 2, OP, "x has shape ", a.x.sizes(), "; it must be [T, D]");
  check_floats(a.x, "x");
  const int64_t D = a.x.size(1);
  TORCH_CHECK_VALUE(1 <= a.num_heads && a.num_heads <= D && D % (2 * a.num_heads) == 0, OP, "num_heads is ",
                    a.num_heads, "; x's width, ", D, ", must be a multiple of 2 * num_heads");
  TORCH_CHECK_VALUE(a.rotations.dim() == 2 && a.rotations.size(1) == D / a.num_heads, OP, "rotations has shape ",
                    a.rotations.sizes(), "; it must be [P, ", D / a.num_heads, "]");
  check_floats(a.rotations, "rotations");
  TORCH_CHECK_VALUE(a.window >= 0, OP, "window is ", a.window, "; it must be >= 0");
  TORCH_CHECK_VALUE(a.num_prefix >= 0, OP, "num_prefix is ", a.num_prefix, "; it must be >= 0");
  TORCH_CHECK_VALUE(!(a.branches && a.last_only), OP, "last_only is for sequences; every branch is its own last token");
  check_weights(a, D);
  check_stored(a, D);
  TORCH_CHECK_VALUE(0 <= a.num_kept && a.num_kept <= num_layers(a), OP, "num_kept is ", a.num_kept,
                    "; it must be 0 to the number of layers, ", num_layers(a));
}

void check_positions(const Arguments& a, const std::vector<int64_t>& offsets,
                     const std::vector<int64_t>& stored_offsets) {
  TORCH_CHECK_VALUE(offsets.size() == stored_offsets.size(), OP, "offsets are of ", offsets.size() - 1,
                    " sequences, stored_offsets of ", stored_offsets.size() - 1);
  for (size_t b = 0; b + 1 < offsets.size(); ++b) {
    const int64_t count = offsets[b + 1] - offsets[b], stored = stored_offsets[b + 1] - stored_offsets[b];
    TORCH_CHECK_VALUE(!a.last_only || count > 0, OP, "sequence ", b, " has no new token; last_only needs one of each");
    const int64_t last = stored + (a.branches ? 0 : count - 1);
    TORCH_CHECK_VALUE(count == 0 || last < a.rotations.size(0), OP, "sequence ", b, " reaches position ", last,
                      "; rotations has ", a.rotations.size(0), " positions");
  }
}

}  // namespace marquee::decoder
