// The loops themselves. Included by one .cpp for each instruction set, after its `#pragma GCC target`; everything is in
// an unnamed namespace, so that no function compiled for a newer processor can be linked in for an older one.
//
// A tile's activations stay in the thread's scratch from the gathered item rows to the logits. Each row is summed in
// the same order whichever tile it is in, so a candidate's logits never depend on what else is in the batch.
#include <cstdint>

#include "candidates/tiles.h"
#include "lanes_impl.h"
#include "linear/rows_impl.h"

namespace marquee::candidates {
namespace {

constexpr int64_t kLineBytes = 64;

typedef int8_t UnalignedBytes __attribute__((vector_size(MARQUEE_LANES), aligned(1), may_alias));

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Span {
  int64_t begin, end;
};

inline Span tile_span(const Operands& o, int64_t tile) {
  const int64_t begin = least(tile * kTileCandidates, o.num_candidates);
  return {begin, least(begin + kTileCandidates, o.num_candidates)};
}

// The parts of a thread's scratch.
struct Scratch {
  float* queries;  // of one request, packed: [num_panels(K), E, 16]
  float* e;        // rows of the second table
  float* met;      // [dot products ; features]
  float* hidden[2];
  int64_t e_stride, met_stride, hidden_stride;
  float* scales;   // of rows that int8 weights are multiplied with,
  uint8_t* bytes;  // and their values

  Scratch(const Operands& o, float* at)
      : queries(at), e_stride(scratch_stride(o.e.width)), met_stride(scratch_stride(o.met.num_inputs)),
        hidden_stride(scratch_stride(o.widest)) {
    e = queries + num_panels(o.num_dots) * kPanel * o.e.width;
    met = e + kTileCandidates * e_stride;
    hidden[0] = met + kTileCandidates * met_stride;
    hidden[1] = hidden[0] + kTileCandidates * hidden_stride;
    scales = hidden[1] + kTileCandidates * hidden_stride;
    bytes = reinterpret_cast<uint8_t*>(scales + num_panels(kTileCandidates) * kPanel);
  }

  Activations activations(const float* rows, int64_t stride, int64_t count) const {
    return {rows, stride, count, bytes, scales};
  }
};

// kLanes columns of a row that is `width` wide, as float32; past its end zeros.
template <class Value>
inline Vector load_within(const Value* row, int64_t column, int64_t width) {
  if (column + kLanes <= width) {
    if constexpr (sizeof(Value) == 1) {
      return __builtin_convertvector(*reinterpret_cast<const UnalignedBytes*>(row + column), Vector);
    } else {
      return load(row + column);
    }
  }
  float values[kLanes] = {};
  for (int64_t lane = 0; column + lane < width; ++lane) {
    values[lane] = static_cast<float>(row[column + lane]);
  }
  return load(values);
}

template <class Value>
inline Vector load_item(const Table& table, int64_t row, int64_t column) {
  const Vector value = load_within(static_cast<const Value*>(table.values) + row * table.width, column, table.width);
  if constexpr (sizeof(Value) == 1) {
    return value * table.scales[row];
  } else {
    return value;
  }
}

inline void prefetch_row(const Table& table, int64_t row) {
  const int64_t bytes = table.width * (table.scales == nullptr ? 4 : 1);
  const char* from = static_cast<const char*>(table.values) + row * bytes;
  for (int64_t at = 0; at < bytes; at += kLineBytes) {
    __builtin_prefetch(from + at, 0, 2);
  }
}

// q [K, E] to panels
inline void pack_queries(const float* q, int64_t K, int64_t E, float* packed) {
  for (int64_t panel = 0; panel < num_panels(K); ++panel, packed += E * kPanel) {
    for (int64_t k = 0; k < kPanel; ++k) {
      const bool real = panel * kPanel + k < K;
      const float* from = q + (panel * kPanel + k) * E;
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

// met = [e · q ; features] for the tile's rows, request by request; `request_of_row` is filled in.
template <class Value>
inline void meet(const Operands& o, Worker& worker, const Scratch& scratch, Span tile, int64_t* request_of_row) {
  const int64_t K = o.num_dots, E = o.e.width;
  int64_t request = request_of(o, tile.begin);
  for (int64_t first = tile.begin; first < tile.end; ++request) {
    const int64_t end = least(o.offsets[request + 1], tile.end);
    if (end == first) {
      continue;
    }
    for (int64_t row = first; row < end; ++row) {
      request_of_row[row - tile.begin] = request;
      for (int64_t i = 0; i < E; i += kLanes) {
        store(scratch.e + (row - tile.begin) * scratch.e_stride + i, load_item<Value>(o.e, o.rows[row], i));
      }
    }
    if (worker.packed_request != request) {
      pack_queries(o.q + request * o.q_stride, K, E, scratch.queries);
      worker.packed_request = request;
    }
    float* met = scratch.met + (first - tile.begin) * scratch.met_stride;
    multiply(scratch.e + (first - tile.begin) * scratch.e_stride, scratch.e_stride, end - first, scratch.queries, E, 0,
             num_panels(K), [&](int64_t row, int64_t column, Vector sums) __attribute__((always_inline)) {
               store(met + row * scratch.met_stride + column, sums);
             });
    first = end;
  }
  const int64_t F = o.met.num_inputs - K;
  for (int64_t row = tile.begin; row < tile.end; ++row) {
    float* to = scratch.met + (row - tile.begin) * scratch.met_stride + K;
    for (int64_t i = 0; i < F; ++i) {
      to[i] = o.features[row * F + i];
    }
  }
}

// hidden[0] = relu(x + p + crossed @ weights + met @ weights)
template <class Value>
inline void first_layer(const Operands& o, const Scratch& scratch, Span tile, const int64_t* request_of_row) {
  const int64_t rows = tile.end - tile.begin, stride = scratch.hidden_stride, H = o.x.width, D = o.crossing.num_inputs;
  float* hidden = scratch.hidden[0];
  for (int64_t row = 0; row < rows; ++row) {
    const float* p = o.p + request_of_row[row] * o.p_stride;
    for (int64_t h = 0; h < H; h += kLanes) {
      store(hidden + row * stride + h, load_item<Value>(o.x, o.rows[tile.begin + row], h) + load_within(p, h, H));
    }
  }
  if (o.crossed != nullptr) {
    const Activations crossed = scratch.activations(o.crossed + tile.begin * D, D, rows);
    prepare(crossed, o.crossing);
    multiply(crossed, o.crossing, 0, num_panels(H),
             [&](int64_t row, int64_t column, Vector sums) __attribute__((always_inline)) {
               float* to = hidden + row * stride + column;
               store(to, load(to) + sums);
             });
  }
  multiply(scratch.met, scratch.met_stride, rows, static_cast<const float*>(o.met.data), o.met.num_inputs, 0,
           num_panels(H),
           [&](int64_t row, int64_t column, Vector sums) __attribute__((always_inline)) {
             float* to = hidden + row * stride + column;
             store(to, relu(load(to) + sums));
           });
}

// out = a @ weights + bias, for all but the last layer relu of it. Not inlined: within a larger function it
// took 1,270 us instead of 830 for 500 candidates of the reference workload, probably for sums kept in memory.
__attribute__((noinline)) void layer(const Activations& a, const Linear& linear, Span panels, bool last, float* out) {
  const int64_t stride = a.stride;
  const Vector least_value = splat(last ? -__builtin_inff() : 0.0f);
  multiply(a, linear.weights, panels.begin, panels.end,
           [&](int64_t row, int64_t column, Vector sums) __attribute__((always_inline)) {
             const Vector value = sums + load(linear.bias + column);
             store(out + row * stride + column, value < least_value ? least_value : value);  // NaN stays NaN
           });
}

// From hidden[0] to the logits, reading ahead the item rows of `ahead` meanwhile.
inline void layers(const Operands& o, const Scratch& scratch, Span tile, Span ahead) {
  const int64_t stride = scratch.hidden_stride, rows = tile.end - tile.begin;
  float* in = scratch.hidden[0];
  float* out = scratch.hidden[1];
  for (int64_t at = 0; at < o.num_layers; ++at) {
    const Linear& linear = o.layers[at];
    const int64_t panels = num_panels(linear.weights.num_outputs);
    const Activations a = scratch.activations(in, stride, rows);
    prepare(a, linear.weights);
    for (int64_t panel = 0; panel < panels; panel += kTilePanels) {
      layer(a, linear, {panel, least(panel + kTilePanels, panels)}, at + 1 == o.num_layers, out);
      const int64_t upto = least(ahead.begin + (ahead.end - ahead.begin) * kTilePanels / (panels - panel) + 1, ahead.end);
      for (; ahead.begin < upto; ++ahead.begin) {
        prefetch_row(o.x, o.rows[ahead.begin]);
        prefetch_row(o.e, o.rows[ahead.begin]);
      }
    }
    float* read = in;
    in = out;
    out = read;
  }
  const int64_t N = o.layers[o.num_layers - 1].weights.num_outputs;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t task = 0; task < N; ++task) {
      o.logits[(tile.begin + row) * N + task] = in[row * stride + task];
    }
  }
}

template <class Value>
inline void score_rows(const Operands& o, Worker& worker, Span tile, Span ahead) {
  const Scratch scratch(o, worker.scratch);
  int64_t request_of_row[kTileCandidates];
  meet<Value>(o, worker, scratch, tile, request_of_row);
  first_layer<Value>(o, scratch, tile, request_of_row);
  layers(o, scratch, tile, ahead);
}

inline void score_tile(const Operands& o, Worker& worker, int64_t tile, int64_t next) {
  if (o.x.scales == nullptr) {
    score_rows<float>(o, worker, tile_span(o, tile), tile_span(o, next));
  } else {
    score_rows<int8_t>(o, worker, tile_span(o, tile), tile_span(o, next));
  }
}

}  // namespace
}  // namespace marquee::candidates
