// marquee::pool_bags, and what it is a part of: embed_tokens, before the decoder, and profile_vector, after it. Schemas,
// checks and the CPU path; adding rows is bound by reading them, so there is one path for all processors. Operators of
// PyTorch's own in their place cost more to find, cold, than to run.
// Shapes: R rows, W id columns, F features, E width of a feature's embedding; T tokens, D decoder width, B requests,
// X width of the dense features.
#include <ATen/Parallel.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace marquee::bags {
namespace {

// Floats that are read below which a second thread costs more than it brings.
constexpr int64_t kGrainFloats = 8192;

struct Feature {
  const float* table;
  int64_t num_rows, width, first_column, num_columns, first_output;
  bool is_mean;
};

std::vector<Feature> features_of(const char* op, const at::Tensor& ids, at::TensorList tables, at::IntArrayRef columns,
                                 const c10::List<bool>& means) {
  TORCH_CHECK_VALUE(tables.size() == columns.size() && tables.size() == means.size(), op, ": there are ",
                    tables.size(), " tables, ", columns.size(), " columns and ", means.size(),
                    " means; it must be one of each for a feature");
  std::vector<Feature> features;
  int64_t column = 0, output = 0;
  for (size_t i = 0; i < tables.size(); ++i) {
    const at::Tensor& table = tables[i];
    TORCH_CHECK_TYPE(table.scalar_type() == at::kFloat, op, ": tables[", i, "] is ", table.scalar_type(),
                     "; it must be float32");
    TORCH_CHECK_VALUE(table.dim() == 2 && table.is_contiguous(), op, ": tables[", i, "] has shape ", table.sizes(),
                      " and strides ", table.strides(), "; it must be [rows, E], contiguous");
    TORCH_CHECK_VALUE(0 < columns[i] && columns[i] <= INT32_MAX, op, ": columns[", i, "] is ", columns[i],
                      "; it must be positive, and fit 32 bits");
    features.push_back(
        {table.const_data_ptr<float>(), table.size(0), table.size(1), column, columns[i], output, means[i]});
    column += columns[i];
    output += table.size(1);
  }
  TORCH_CHECK_VALUE(ids.dim() == 2 && ids.size(1) == column && ids.is_contiguous(), op, ": ids has shape ",
                    ids.sizes(), " and strides ", ids.strides(), "; it must be [R, ", column, "], contiguous");
  TORCH_CHECK_TYPE(ids.scalar_type() == at::kLong, op, ": ids is ", ids.scalar_type(), "; it must be int64");
  return features;
}

void check_ids(const char* op, const int64_t* ids, int64_t R, int64_t W, const std::vector<Feature>& features) {
  for (const Feature& feature : features) {
    for (int64_t row = 0; row < R; ++row) {
      for (int64_t at = 0; at < feature.num_columns; ++at) {
        const int64_t id = ids[row * W + feature.first_column + at];
        TORCH_CHECK_VALUE(id < feature.num_rows, op, ": ids[", row, ", ", feature.first_column + at, "] is ", id,
                          "; the table has ", feature.num_rows, " rows");
      }
    }
  }
}

// Sums of `Width` columns stay in registers while the rows go by.
template <int64_t Width>
void pool_columns(const Feature& feature, const int64_t* ids, int64_t least, int64_t column, float* out) {
  float sums[Width] = {};
  int64_t count = 0;
  for (int64_t at = 0; at < feature.num_columns; ++at) {
    if (ids[at] >= least) {
      const float* row = feature.table + ids[at] * feature.width + column;
      for (int64_t i = 0; i < Width; ++i) {
        sums[i] += row[i];
      }
      ++count;
    }
  }
  const float divisor = feature.is_mean && count > 1 ? float(count) : 1.0f;
  for (int64_t i = 0; i < Width; ++i) {
    out[column + i] = sums[i] / divisor;
  }
}

void pool(const Feature& feature, const int64_t* ids, int64_t least, float* out) {
  constexpr int64_t kWide = 32, kNarrow = 8;
  int64_t column = 0;
  for (; column + kWide <= feature.width; column += kWide) {
    pool_columns<kWide>(feature, ids, least, column, out);
  }
  for (; column + kNarrow <= feature.width; column += kNarrow) {
    pool_columns<kNarrow>(feature, ids, least, column, out);
  }
  for (; column < feature.width; ++column) {
    pool_columns<1>(feature, ids, least, column, out);
  }
}

void check_floats(const at::Tensor& tensor, const char* name, int64_t rows) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, name, " is ", tensor.scalar_type(), "; it must be float32");
  TORCH_CHECK_VALUE(tensor.dim() == 2 && tensor.is_contiguous() && (rows < 0 || tensor.size(0) == rows), name,
                    " has shape ", tensor.sizes(), " and strides ", tensor.strides(), "; it must be [",
                    rows < 0 ? "rows" : std::to_string(rows), ", width], contiguous");
}

void check_index(const at::Tensor& index, const char* name, int64_t size) {
  TORCH_CHECK_TYPE(index.scalar_type() == at::kLong, "embed_tokens: ", name, " is ", index.scalar_type(),
                   "; it must be int64");
  TORCH_CHECK_VALUE(index.dim() == 1 && (size < 0 || index.size(0) == size) && index.is_contiguous(), "embed_tokens: ",
                    name, " has shape ", index.sizes(), " and strides ", index.strides(), "; it must be [",
                    size < 0 ? "B" : std::to_string(size), "], contiguous");
}

// Where each request's tokens begin: behind the last token of the one before it. A request without tokens would take its
// neighbour's, so every first token's position is looked at.
at::Tensor offsets_of(const at::Tensor& last_index, const at::Tensor& positions) {
  const int64_t B = last_index.size(0), T = positions.size(0);
  at::Tensor offsets = at::empty({B + 1}, last_index.options());
  int64_t* to = offsets.mutable_data_ptr<int64_t>();
  *to = 0;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t last = last_index.const_data_ptr<int64_t>()[b];
    TORCH_CHECK_VALUE(to[b] <= last && last < T && positions.const_data_ptr<int64_t>()[to[b]] == 0,
                      "embed_tokens: last_index[", b, "] is ", last, "; request ", b, " has no token at ", to[b],
                      " to begin with, and every request must have one");
    to[b + 1] = last + 1;
  }
  TORCH_CHECK_VALUE(to[B] == T, "embed_tokens: the last of last_index is ", to[B] - 1, "; there are ", T, " tokens");
  return offsets;
}

std::tuple<at::Tensor, at::Tensor> embed_tokens_cpu(const at::Tensor& facet_ids, const at::Tensor& facets,
                                                    const at::Tensor& item_ids, const at::Tensor& items,
                                                    const at::Tensor& last_index, const at::Tensor& positions) {
  TORCH_CHECK_VALUE(facet_ids.dim() == 2, "embed_tokens: facet_ids has shape ", facet_ids.sizes(), "; it must be [T, W]");
  const Feature facet = features_of("embed_tokens", facet_ids, facets, {facet_ids.size(1)}, c10::List<bool>({false})).front();
  const int64_t T = facet_ids.size(0), W = facet_ids.size(1), D = facet.width;
  check_floats(items, "embed_tokens: items", -1);
  const int64_t num_items = items.size(0);
  TORCH_CHECK_VALUE(items.size(1) == D, "embed_tokens: items has shape ", items.sizes(), "; it must be [I, ", D, "]");
  check_index(item_ids, "item_ids", T);
  check_index(positions, "positions", T);
  check_index(last_index, "last_index", -1);
  const int64_t *ids = facet_ids.const_data_ptr<int64_t>(), *rows = item_ids.const_data_ptr<int64_t>();
  check_ids("embed_tokens", ids, T, W, {facet});
  for (int64_t t = 0; t < T; ++t) {
    TORCH_CHECK_VALUE(0 <= rows[t] && rows[t] < num_items, "embed_tokens: item_ids[", t, "] is ", rows[t],
                      "; there are ", num_items, " items");
  }
  at::Tensor out = at::empty({T, D}, items.options());
  float* to = out.mutable_data_ptr<float>();
  const float* of_items = items.const_data_ptr<float>();
  at::parallel_for(0, T, std::max<int64_t>(1, kGrainFloats / (D * (W + 1) + 1)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      pool(facet, ids + t * W, 1, to + t * D);  // facet row 0 is padding
      for (int64_t i = 0; i < D; ++i) {
        to[t * D + i] += of_items[rows[t] * D + i];
      }
    }
  });
  return {out, offsets_of(last_index, positions)};
}

at::Tensor profile_vector_cpu(const at::Tensor& hidden, double least_norm, const at::Tensor& ids, at::TensorList tables,
                              at::IntArrayRef columns, const c10::List<bool>& means, const at::Tensor& dense) {
  TORCH_CHECK_VALUE(least_norm > 0, "profile_vector: least_norm is ", least_norm, "; it must be positive");
  const std::vector<Feature> features = features_of("profile_vector", ids, tables, columns, means);
  const int64_t B = ids.size(0), W = ids.size(1);
  check_floats(hidden, "profile_vector: hidden", B);
  check_floats(dense, "profile_vector: dense", B);
  check_ids("profile_vector", ids.const_data_ptr<int64_t>(), B, W, features);
  const int64_t D = hidden.size(1), X = dense.size(1);
  const int64_t pooled = features.empty() ? 0 : features.back().first_output + features.back().width;
  at::Tensor out = at::empty({B, D + pooled + X}, hidden.options());
  float* to = out.mutable_data_ptr<float>();
  for (int64_t b = 0; b < B; ++b, to += D + pooled + X) {
    const float* x = hidden.const_data_ptr<float>() + b * D;
    double squares = 0;
    for (int64_t i = 0; i < D; ++i) {
      squares += double(x[i]) * x[i];
    }
    const float norm = float(std::sqrt(squares)), least = float(least_norm);
    for (int64_t i = 0; i < D; ++i) {
      to[i] = x[i] / (norm < least ? least : norm);
    }
    for (const Feature& feature : features) {
      pool(feature, ids.const_data_ptr<int64_t>() + b * W + feature.first_column, 0, to + D + feature.first_output);
    }
    std::copy_n(dense.const_data_ptr<float>() + b * X, X, to + D + pooled);
  }
  return out;
}

at::Tensor pool_bags_cpu(const at::Tensor& ids, at::TensorList tables, at::IntArrayRef columns,
                         const c10::List<bool>& means, int64_t least, const std::optional<at::Tensor>& beside) {
  TORCH_CHECK_VALUE(least >= 0, "pool_bags: least is ", least, "; it must be at least 0");
  const std::vector<Feature> features = features_of("pool_bags", ids, tables, columns, means);
  const int64_t R = ids.size(0), W = ids.size(1);
  int64_t width = 0, floats = 1;
  for (const Feature& feature : features) {
    width += feature.width;
    floats += feature.width * feature.num_columns;
  }
  const int64_t* first = ids.const_data_ptr<int64_t>();
  check_ids("pool_bags", first, R, W, features);
  int64_t X = 0;
  if (beside) {
    check_floats(*beside, "pool_bags: beside", R);
    X = beside->size(1);
  }
  at::Tensor out = at::empty({R, width + X}, ids.options().dtype(at::kFloat));
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, R, std::max<int64_t>(1, kGrainFloats / floats), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (const Feature& feature : features) {
        pool(feature, first + row * W + feature.first_column, least, to + row * (width + X) + feature.first_output);
      }
      if (X > 0) {
        std::copy_n(beside->const_data_ptr<float>() + row * X, X, to + row * (width + X) + width);
      }
    }
  });
  return out;
}

}  // namespace
}  // namespace marquee::bags

TORCH_LIBRARY_FRAGMENT(marquee, library) {
  library.def(
      "pool_bags(Tensor ids, Tensor[] tables, int[] columns, bool[] means, int least, Tensor? beside=None) -> Tensor");
  library.def(
      "embed_tokens(Tensor facet_ids, Tensor facets, Tensor item_ids, Tensor items, Tensor last_index, Tensor positions) "
      "-> (Tensor tokens, Tensor offsets)");
  library.def(
      "profile_vector(Tensor hidden, float least_norm, Tensor ids, Tensor[] tables, int[] columns, bool[] means, "
      "Tensor dense) -> Tensor");
}

TORCH_LIBRARY_IMPL(marquee, CPU, library) {
  library.impl("pool_bags", &marquee::bags::pool_bags_cpu);
  library.impl("embed_tokens", &marquee::bags::embed_tokens_cpu);
  library.impl("profile_vector", &marquee::bags::profile_vector_cpu);
}

// Serving only: backward through one says so, instead of silently giving no gradient.
TORCH_LIBRARY_IMPL(marquee, Autograd, library) {
  for (const char* name : {"pool_bags", "embed_tokens", "profile_vector"}) {
    library.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}
