// float32 products by AMX's bfloat16 instruction. With 24 bits of mantissa a float32 is the sum of three bfloat16 ones
// of 8 bits each, exactly:
//
//     x = x0 + x1 + x2,    x y = x0 y0 + (x0 y1 + x1 y0) + (x0 y2 + x1 y1 + x2 y0) + (at most 2^-21 |x y|)
//
// Six products are added in float32, smaller ones first (Henry, Tang, Heinecke, arXiv 1904.06376). What is left out is
// below what adding up rounds: of normal random operands the largest error is half of that of float32 multiply-adds one
// after the other (2.9e-7 and 5.4e-7 of the largest output, K = 512). A value that isn't finite makes its outputs NaN,
// one below 2^-110 loses bits, and so does a product below 2^-102. Included as amx_impl.h.
#pragma once

#include "linear/amx_impl.h"
#include "linear/parts_impl.h"

#if MARQUEE_LANES == 16

namespace marquee {
namespace {

// A block is the panels' inputs that are split at once: [2 panels, 3 parts, steps, 16 lines], with gaps after each
// part, so that the parts don't share the same few sets of the first cache.
constexpr int64_t kBlockSteps = 4, kPanelPartBytes = kBlockSteps * kTileBytes + 5 * kTileLine;
constexpr int64_t kPanelBytes = 3 * kPanelPartBytes;
constexpr int64_t kMostRows = 9 * kGroupRows;  // whose sums are kept

// Splits a block of two panels, a few lines at a time between products: these leave the other units idle.
class PanelSplitter {
 public:
  PanelSplitter() = default;
  // Inputs [first, first + kBlockSteps * 32) of two panels; where there is one alone, the second counts as zeros.
  // What lies `ahead` floats on is asked for meanwhile.
  PanelSplitter(const float* panel, int64_t panels, int64_t first, int64_t K, int64_t ahead, uint8_t* to)
      : ahead_(ahead), to_(to) {
    const int64_t inputs = K - first < kBlockSteps * kStepInputs ? K - first : kBlockSteps * kStepInputs;
    from_ = panel + first * kPanel;
    next_panel_ = panels > 1 ? from_ + K * kPanel : nullptr;
    lines_ = left_ = inputs / 2;
    fill(from_, inputs, to);
    fill(next_panel_, next_panel_ == nullptr ? 0 : inputs, to + kPanelBytes);
  }

  int64_t num_lines() const { return 2 * lines_; }

  __attribute__((always_inline)) void advance(int64_t lines) {
    const float* from = from_;
    uint8_t* to = to_;
    const int64_t count = lines < left_ ? lines : left_;
    for (int64_t line = 0; line < count; ++line, from += 2 * kPanel, to += kTileLine) {
      split_line(load(from), load(from + kPanel), to);
      __builtin_prefetch(from + ahead_, 0, 2);
      __builtin_prefetch(from + ahead_ + kPanel, 0, 2);
    }
    from_ = from;
    to_ = to;
    left_ -= count;
    if (left_ == 0 && next_panel_ != nullptr) {
      from_ = next_panel_;
      next_panel_ = nullptr;
      to_ += kPanelBytes - lines_ * kTileLine;
      left_ = lines_;
    }
  }

  void finish() {
    advance(left_);
    advance(left_);
  }

 private:
  // A line of a tile: two inputs of 16 outputs.
  __attribute__((always_inline)) static void split_line(Vector even, Vector odd, uint8_t* to) {
    const Parts of_even = split(even), of_odd = split(odd);
#pragma GCC unroll 3
    for (int part = 0; part < 3; ++part) {
      const Words both = of_even.part[part] >> 16 | of_odd.part[part];
      __builtin_memcpy(to + part * kPanelPartBytes, &both, sizeof(both));
    }
  }

  // What of a whole step's lines isn't a pair of inputs.
  static void fill(const float* from, int64_t inputs, uint8_t* to) {
    for (int64_t line = inputs / 2; line < (inputs > 0 ? round_up(inputs, kStepInputs) : kBlockSteps * kStepInputs) / 2;
         ++line) {
      split_line(2 * line < inputs ? load(from + 2 * line * kPanel) : Vector{}, Vector{}, to + line * kTileLine);
    }
  }

  const float *from_ = nullptr, *next_panel_ = nullptr;
  int64_t ahead_ = 0;
  uint8_t* to_ = nullptr;
  int64_t lines_ = 0, left_ = 0;
};

// Calls out(row, column, sums) for a group's sums, some rows at a time between the next group's products: what a tile's
// store wrote is slow to load at once.
template <class Out>
class Emitter {
 public:
  explicit Emitter(const Out& out) : out_(out) {}

  void begin(const float* sums, int64_t row, int64_t count, int64_t column, int64_t panels) {
    sums_ = sums;
    row_ = row;
    last_ = row + kGroupRows < count ? row + kGroupRows : count;
    column_ = column;
    panels_ = panels;
  }

  __attribute__((always_inline)) void advance(int64_t rows) {
    for (; rows > 0 && row_ < last_; --rows, ++row_, sums_ += kGroupColumns) {
      out_(row_, column_, load(sums_));
      if (panels_ > 1) {
        out_(row_, column_ + kPanel, load(sums_ + kPanel));
      }
    }
  }

 private:
  const Out& out_;
  const float* sums_ = nullptr;
  int64_t row_ = 0, last_ = 0, column_ = 0, panels_ = 0;
};

// sums += a group's rows times two panels, over `steps` steps; between() after each of a step's six products.
template <int kTiles, class Between>
__attribute__((always_inline)) inline void add_split_products(const uint8_t* rows, const uint8_t* panels, int64_t steps,
                                                              const Between& between) {
  const auto rows_part = [](const uint8_t* step, int part) __attribute__((always_inline)) {
    load_rows<kTiles>(step + part * kPartBytes, kTileLine, kTileBytes);
  };
  const auto panels_part = [](const uint8_t* step, int part) __attribute__((always_inline)) {
    load_panels(step + part * kPanelPartBytes, kPanelBytes);
  };
  const auto add = [&]() __attribute__((always_inline)) {
    MARQUEE_ADD_PRODUCT("tdpbf16ps", 0, 4, 6);
    MARQUEE_ADD_PRODUCT("tdpbf16ps", 1, 4, 7);
    if constexpr (kTiles == 2) {
      MARQUEE_ADD_PRODUCT("tdpbf16ps", 2, 5, 6);
      MARQUEE_ADD_PRODUCT("tdpbf16ps", 3, 5, 7);
    }
    between();
  };
  for (int64_t step = 0; step < steps; ++step, rows += kStepBytes, panels += kTileBytes) {
    rows_part(rows, 0);
    panels_part(panels, 2);
    add();
    panels_part(panels, 1);
    add();
    rows_part(rows, 1);
    add();
    panels_part(panels, 0);
    add();
    rows_part(rows, 2);
    add();
    rows_part(rows, 0);
    add();
  }
}

// out(row, column, sums) for at most kMostRows split rows times panels [first, last) of float32 weights.
template <class Out, class Aside>
inline void multiply_split_rows(const uint8_t* rows, int64_t count, const float* packed, int64_t K, int64_t first,
                                int64_t last, const Out& out, const Aside& aside) {
  const int64_t steps = round_up(K, kStepInputs) / kStepInputs, blocks = round_up(steps, kBlockSteps) / kBlockSteps;
  const int64_t groups = round_up(count, kGroupRows) / kGroupRows, num_tasks = (last - first + 1) / 2 * blocks;
  alignas(64) uint8_t buffers[2][2 * kPanelBytes];
  alignas(64) float sums[kMostRows * kGroupColumns];
  const auto input_of = [&](int64_t task) { return task % blocks * kBlockSteps * kStepInputs; };
  const auto panel_of = [&](int64_t task) { return first + task / blocks * 2; };
  const auto splitter = [&](int64_t task) {
    const int64_t ahead = (panel_of(task + 1) - panel_of(task)) * K + input_of(task + 1) - input_of(task);
    return PanelSplitter(packed + panel_of(task) * K * kPanel, last - panel_of(task), input_of(task), K, ahead * kPanel,
                         buffers[task % 2]);
  };
  const TileRegisters registers;
  Emitter<Out> emitter(out);
  PanelSplitter next = splitter(0);
  next.finish();
  for (int64_t task = 0; task < num_tasks; ++task) {
    const int64_t panel = panel_of(task), from = task % blocks * kBlockSteps;
    const int64_t own_steps = steps - from < kBlockSteps ? steps - from : kBlockSteps, slots = 6 * own_steps;
    next = task + 1 < num_tasks ? splitter(task + 1) : PanelSplitter();
    const int64_t lines = (next.num_lines() + slots * groups - 1) / (slots * groups);
    const int64_t emitted = (kGroupRows + slots - 1) / slots;
    for (int64_t group = 0; group < groups; ++group) {
      float* own = sums + group * kGroupRows * kGroupColumns;
      by_tiles(count - group * kGroupRows, [&](auto tiles) {
        constexpr int kTiles = decltype(tiles)::kTiles;
        if (from == 0) {
          zero_sums<kTiles>();
        } else {
          load_sums<kTiles>(own);
        }
        add_split_products<kTiles>(rows + (group * steps + from) * kStepBytes, buffers[task % 2], own_steps,
                                   [&]() __attribute__((always_inline)) {
                                     next.advance(lines);
                                     emitter.advance(emitted);
                                     aside();
                                   });
        emitter.advance(kGroupRows);
        store_sums<kTiles>(own);
      });
      if (from + own_steps == steps) {
        emitter.begin(own, group * kGroupRows, count, panel * kPanel, last - panel);
      }
    }
    next.finish();
  }
  emitter.advance(kGroupRows);
}

// Times that `aside` is called for `count` rows.
inline int64_t num_asides(int64_t count, const PackedWeights& weights) {
  const int64_t steps = round_up(weights.num_inputs, kStepInputs) / kStepInputs;
  return round_up(count, kGroupRows) / kGroupRows * steps * 6 * ((num_panels(weights.num_outputs) + 1) / 2);
}

// out(row, column, sums) for split rows times panels [first, last) of float32 weights. What `out` computes is nearly
// free, see Emitter; and so is what aside() does, between products.
template <class Out, class Aside>
inline void multiply_split(const Activations& a, const PackedWeights& weights, int64_t first, int64_t last,
                           const Out& out, const Aside& aside) {
  const int64_t K = weights.num_inputs, row_bytes = prepared_bytes(kMostRows, K) / kMostRows;
  if (first >= last) {
    return;  // of few panels a thread may get none
  }
  for (int64_t row = 0; row < a.count; row += kMostRows) {
    multiply_split_rows(a.bytes + row * row_bytes, a.count - row < kMostRows ? a.count - row : kMostRows,
                        static_cast<const float*>(weights.data), K, first, last,
                        [&](int64_t i, int64_t column, Vector sums) __attribute__((always_inline)) {
                          out(row + i, column, sums);
                        },
                        aside);
  }
}

template <class Out>
inline void multiply_split(const Activations& a, const PackedWeights& weights, int64_t first, int64_t last,
                           const Out& out) {
  multiply_split(a, weights, first, last, out, [] {});
}

}  // namespace
}  // namespace marquee

#endif
