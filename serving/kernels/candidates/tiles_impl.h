// The loops themselves. Included by one .cpp for each instruction set, after its `#pragma GCC target`; everything is in
// an unnamed namespace, so that no function compiled for a newer processor can be linked in for an older one.
//
// A tile's activations stay in the thread's scratch from the gathered item rows to the logits. Each row is summed in
// the same order whichever tile it is in, so a candidate's logits never depend on what else is in the batch.
#include <cstdint>

#include "candidates/tiles.h"
#include "lanes_impl.h"
#include "linear/panels_impl.h"

namespace marquee::candidates {
namespace {

constexpr int64_t kLineBytes = 64;

typedef int8_t Bytes __attribute__((vector_size(MARQUEE_LANES)));
typedef int8_t UnalignedBytes __attribute__((vector_size(MARQUEE_LANES), aligned(1), may_alias));

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The parts of a thread's scratch.
struct Scratch {
  float* queries;  // of one request, packed: [num_panels(K), E, 16]
  float* e;
  float* dots;
  float* hidden[2];
  int64_t e_stride, dots_stride, hidden_stride;

  Scratch(const Operands& o, float* at)
      : e_stride(scratch_stride(o.e.width)), dots_stride(scratch_stride(o.dots.inputs)),
        hidden_stride(scratch_stride(o.widest)) {
    queries = at;
    e = queries + num_panels(o.dots.inputs) * kPanel * o.e.width;
    dots = e + kTileCandidates * e_stride;
    hidden[0] = dots + kTileCandidates * dots_stride;
    hidden[1] = hidden[0] + kTileCandidates * hidden_stride;
  }
};

struct Rows {
  float* data;
  int64_t stride;
};

// out = max(addend + a @ weights, least_value) for the panels [first, last); addend rows `addend_stride` floats apart.
struct Epilogue {
  const float* addend;
  int64_t addend_stride;
  bool relu;
  Rows out;
};

inline void linear(const float* a, int64_t stride, int64_t rows, const Linear& layer, int64_t first, int64_t last,
                   const Epilogue& to) {
  const Vector floor = splat(to.relu ? 0.0f : -__builtin_inff());
  multiply(a, stride, rows, layer.packed, layer.inputs, first, last, [&](int64_t row, int64_t column, Vector sums) {
    const Vector value = load(to.addend + row * to.addend_stride + column) + sums;
    store(to.out.data + row * to.out.stride + column, value < floor ? floor : value);  // NaN stays NaN
  });
}

inline void linear(const float* a, int64_t stride, int64_t rows, const Linear& layer, const Epilogue& to) {
  linear(a, stride, rows, layer, 0, num_panels(layer.outputs), to);
}

// out = table[row] + addend (null: 0), padded with zeros to whole panels
inline void gather(const Table& table, int64_t row, const float* addend, float* out) {
  const int64_t width = table.width, padded = num_panels(width) * kPanel;
  int64_t i = 0;
  if (table.scales == nullptr) {
    const float* from = static_cast<const float*>(table.values) + row * width;
    for (; i + kLanes <= width; i += kLanes) {
      store(out + i, addend == nullptr ? load(from + i) : load(from + i) + load(addend + i));
    }
    for (; i < width; ++i) {
      out[i] = addend == nullptr ? from[i] : from[i] + addend[i];
    }
  } else {
    const int8_t* from = static_cast<const int8_t*>(table.values) + row * width;
    const float scale = table.scales[row];
    for (; i + kLanes <= width; i += kLanes) {
      const Bytes bytes = *reinterpret_cast<const UnalignedBytes*>(from + i);
      const Vector value = __builtin_convertvector(bytes, Vector) * scale;
      store(out + i, addend == nullptr ? value : value + load(addend + i));
    }
    for (; i < width; ++i) {
      const float value = static_cast<float>(from[i]) * scale;
      out[i] = addend == nullptr ? value : value + addend[i];
    }
  }
  for (; i < padded; ++i) {
    out[i] = 0;
  }
}

inline void prefetch_row(const Table& table, int64_t row) {
  const int64_t bytes = table.width * (table.scales == nullptr ? 4 : 1);
  const char* from = static_cast<const char*>(table.values) + row * bytes;
  for (int64_t at = 0; at < bytes; at += kLineBytes) {
    __builtin_prefetch(from + at, 0, 2);
  }
}

inline void pack_queries(const float* q, int64_t K, int64_t E, float* packed) {
  for (int64_t panel = 0; panel < num_panels(K); ++panel, packed += E * kPanel) {
    for (int64_t k = 0; k < kPanel; ++k) {
      const float* from = q + (panel * kPanel + k) * E;
      const bool real = panel * kPanel + k < K;
      for (int64_t i = 0; i < E; ++i) {
        packed[i * kPanel + k] = real ? from[i] : 0;
      }
    }
  }
}

// The request that candidate `row` belongs to: the last one whose first candidate is at or before it.
inline int64_t request_of(const Operands& o, int64_t row) {
  int64_t low = 0;
  for (int64_t span = o.num_requests; span > 1;) {
    const int64_t half = span / 2;
    low = o.offsets[low + half] <= row ? low + half : low;
    span -= half;
  }
  return low;
}

// hidden = x + p and dots = e · q for rows [begin, end), request by request
inline void gather_tile(const Operands& o, Worker& worker, const Scratch& scratch, int64_t begin, int64_t end) {
  int64_t request = request_of(o, begin);
  const int64_t K = o.dots.inputs, E = o.e.width;
  for (int64_t row = begin; row < end; ++request) {
    const int64_t request_end = least(o.offsets[request + 1], end), first = row - begin;
    for (; row < request_end; ++row) {
      gather(o.x, o.rows[row], o.p + request * o.x.width, scratch.hidden[0] + (row - begin) * scratch.hidden_stride);
      gather(o.e, o.rows[row], nullptr, scratch.e + (row - begin) * scratch.e_stride);
    }
    if (worker.packed_request != request && row - begin > first) {
      pack_queries(o.q + request * K * E, K, E, scratch.queries);
      worker.packed_request = request;
    }
    const Linear queries{scratch.queries, nullptr, E, K};
    linear(scratch.e + first * scratch.e_stride, scratch.e_stride, row - begin - first, queries,
           {o.zeros, 0, false, {scratch.dots + first * scratch.dots_stride, scratch.dots_stride}});
  }
}

// Layer by layer from the first hidden activations to the logits, reading ahead the rows [ahead, ahead_end) meanwhile.
inline void layers(const Operands& o, const Scratch& scratch, int64_t begin, int64_t rows, int64_t ahead,
                   int64_t ahead_end) {
  const int64_t stride = scratch.hidden_stride;
  float* in = scratch.hidden[0];
  float* out = scratch.hidden[1];
  for (int64_t at = 0; at < o.num_layers; ++at) {
    const Linear& layer = o.layers[at];
    const int64_t panels = num_panels(layer.outputs);
    const Epilogue to{layer.bias, 0, at + 1 < o.num_layers, {out, stride}};
    for (int64_t panel = 0; panel < panels; panel += kTilePanels) {
      linear(in, stride, rows, layer, panel, least(panel + kTilePanels, panels), to);
      const int64_t upto = least(ahead + (ahead_end - ahead) * kTilePanels / (panels - panel) + 1, ahead_end);
      for (; ahead < upto; ++ahead) {
        prefetch_row(o.x, o.rows[ahead]);
        prefetch_row(o.e, o.rows[ahead]);
      }
    }
    float* read = in;
    in = out;
    out = read;
  }
  const int64_t N = o.layers[o.num_layers - 1].outputs;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t task = 0; task < N; ++task) {
      o.logits[(begin + row) * N + task] = in[row * stride + task];
    }
  }
}

inline void score_tile(const Operands& o, Worker& worker, int64_t tile, int64_t next) {
  const Scratch scratch(o, worker.scratch);
  const int64_t begin = tile * kTileCandidates, end = least(begin + kTileCandidates, o.num_candidates);
  const int64_t rows = end - begin, stride = scratch.hidden_stride;
  float* hidden = scratch.hidden[0];
  gather_tile(o, worker, scratch, begin, end);
  const Epilogue add{hidden, stride, false, {hidden, stride}};
  if (o.crossed != nullptr) {
    const int64_t width = o.crossing_layer.inputs;
    linear(o.crossed + begin * width, width, rows, o.crossing_layer, add);
  }
  if (o.features != nullptr) {
    const int64_t width = o.features_layer.inputs;
    linear(o.features + begin * width, width, rows, o.features_layer, add);
  }
  linear(scratch.dots, scratch.dots_stride, rows, o.dots, {hidden, stride, true, {hidden, stride}});
  const int64_t ahead = least(next * kTileCandidates, o.num_candidates);
  layers(o, scratch, begin, rows, ahead, least(ahead + kTileCandidates, o.num_candidates));
}

}  // namespace
}  // namespace marquee::candidates
