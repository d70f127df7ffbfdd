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
  const int64_t begin = least(tile * o.tile, o.num_candidates);
  return {begin, least(begin + o.tile, o.num_candidates)};
}

// The parts of a thread's scratch.
struct Scratch {
  float* queries;  // of one request, packed: [num_panels(K), E, 16]
  float* e;        // rows of the second table
  float* met;      // [dot products ; features]
  float* hidden[2];
  int64_t e_stride, met_stride, hidden_stride;
  uint8_t* bytes;  // rows prepared for a product: quantised, or split for AMX;
  float* scales;   // and their scales, if quantised

  Scratch(const Operands& o, float* at)
      : queries(at), e_stride(scratch_stride(o.e.width)), met_stride(scratch_stride(o.met.num_inputs)),
        hidden_stride(scratch_stride(o.widest)) {
    e = queries + num_panels(o.num_dots) * kPanel * o.e.width;
    met = e + o.tile * e_stride;
    hidden[0] = met + o.tile * met_stride;
    hidden[1] = hidden[0] + o.tile * hidden_stride;
    scales = hidden[1] + o.tile * hidden_stride;
    bytes = reinterpret_cast<uint8_t*>(scales + num_panels(o.tile) * kPanel);
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

// Item rows of a later tile, asked for a few lines at a time.
class RowsAhead {
 public:
  RowsAhead(const Operands& o, Span rows) : o_(o), rows_(rows) {}

  int64_t num_lines() const { return (rows_.end - rows_.begin) * (lines_of(o_.x) + lines_of(o_.e)); }

  __attribute__((always_inline)) void advance(int64_t lines) {
    for (; lines > 0 && rows_.begin < rows_.end; --lines, ++line_) {
      const int64_t line = line_ - lines_of(o_.x);
      const Table& table = line < 0 ? o_.x : o_.e;
      const int64_t row = o_.rows[rows_.begin] * row_bytes(table);
      __builtin_prefetch(static_cast<const char*>(table.values) + row + (line < 0 ? line_ : line) * kLineBytes, 0, 2);
      if (line + 1 == lines_of(o_.e)) {
        line_ = -1;
        ++rows_.begin;
      }
    }
  }

 private:
  static int64_t row_bytes(const Table& table) { return table.width * (table.scales == nullptr ? 4 : 1); }
  static int64_t lines_of(const Table& table) { return (row_bytes(table) + kLineBytes - 1) / kLineBytes; }

  const Operands& o_;
  Span rows_;
  int64_t line_ = 0;  // of rows_.begin: those of x, then those of e
};

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

// The same with the rows ahead read between the products.
inline void layer_by_amx(const Activations& a, const Linear& linear, bool last, float* out, RowsAhead& ahead) {
#if MARQUEE_LANES == 16
  const int64_t lines = ahead.num_lines() / num_asides(a.count, linear.weights) + 1;
  const Vector least_value = splat(last ? -__builtin_inff() : 0.0f);
  multiply_split(
      a, linear.weights, 0, num_panels(linear.weights.num_outputs),
      [&](int64_t row, int64_t column, Vector sums) __attribute__((always_inline)) {
        const Vector value = sums + load(linear.bias + column);
        store(out + row * a.stride + column, value < least_value ? least_value : value);
      },
      [&]() __attribute__((always_inline)) { ahead.advance(lines); });
#endif
}

// From hidden[0] to the logits, reading ahead item rows meanwhile.
inline void layers(const Operands& o, const Scratch& scratch, Span tile, RowsAhead ahead) {
  const int64_t stride = scratch.hidden_stride, rows = tile.end - tile.begin;
  float* in = scratch.hidden[0];
  float* out = scratch.hidden[1];
  for (int64_t at = 0; at < o.num_layers; ++at) {
    const Linear& linear = o.layers[at];
    const int64_t panels = num_panels(linear.weights.num_outputs);
    const Activations a = scratch.activations(in, stride, rows);
    const bool last = at + 1 == o.num_layers;
    prepare(a, linear.weights);
    if (is_split(linear.weights)) {
      layer_by_amx(a, linear, last, out, ahead);
    } else {
      const int64_t stripe = linear.weights.extra == Extra::amx ? 4 : kTilePanels;  // AMX takes two panels at once
      for (int64_t panel = 0; panel < panels; panel += stripe) {
        layer(a, linear, {panel, least(panel + stripe, panels)}, last, out);
        ahead.advance(ahead.num_lines() * stripe / (panels - panel) + 1);
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
  int64_t request_of_row[kMostTileCandidates];
  if (worker.packed_request < 0) {  // nobody has asked for the first tile's rows
    RowsAhead first(o, tile);
    first.advance(first.num_lines());
  }
  meet<Value>(o, worker, scratch, tile, request_of_row);
  first_layer<Value>(o, scratch, tile, request_of_row);
  layers(o, scratch, tile, RowsAhead(o, ahead));
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
