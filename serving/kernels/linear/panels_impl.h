// Rows times panels of weights. Included after `#pragma GCC target` and MARQUEE_LANES, see lanes_impl.h.
//
// Each output is summed over K in the same order whichever rows and panels it is computed with, so that a row's result
// never depends on what else is in the batch.
#pragma once

#include "lanes_impl.h"
#include "linear/panels.h"

namespace marquee {
namespace {

// A tile of sums that fills the registers: rows by panels of kPanel / kLanes vectors. Measured on AVX-512 in GFLOP/s of
// one core at K = 256: 8 x 3 panels 202 (four inputs a turn of the loop; one at a time 197), 12 x 2 188 (its inputs
// loaded for each panel, see spread: 180), 14 x 2 180; on AVX2 6 x 1 111, 4 x 1 99.
#if MARQUEE_LANES == 16
constexpr int kTileRows = 8, kTilePanels = 3;
#elif MARQUEE_LANES == 8
constexpr int kTileRows = 6, kTilePanels = 1;
#else
constexpr int kTileRows = 2, kTilePanels = 1;
#endif
constexpr int kPanelVectors = kPanel / kLanes;

// How a product is computed: what rows and weights consist of (units of four bytes), and how a vector of sums grows.
struct Float32 {
  using Unit = float;
  using Sums = Vector;
  static constexpr int kRows = kTileRows;

  __attribute__((always_inline)) static Vector load(const float* from) { return marquee::load(from); }
  __attribute__((always_inline)) static Vector add(Vector sums, Vector x, Vector weights) {
    return sums + x * weights;
  }
  // In a register: as an operand of each panel's instruction it would be loaded once for each.
  __attribute__((always_inline)) static Vector spread(float x) {
    Vector value = splat(x);
#if MARQUEE_LANES == 16
    asm("" : "+v"(value));
#endif
    return value;
  }
};

template <class Product>
struct InputRows {
  const typename Product::Unit* data;
  int64_t stride;  // in units

  InputRows from(int64_t row) const { return {data + row * stride, stride}; }
};

// A panel's 16 weights of input k lie at data + k * step, the next panel's `stride` units on.
template <class Product>
struct PanelsOf {
  const typename Product::Unit* data;
  int64_t stride, step, K;

  PanelsOf from(int64_t panel) const { return {data + panel * stride, stride, step, K}; }
};

// out(row, column, sums) for Rows x (Panels * kPanel) outputs, kLanes columns at a time. Ahead: the panels that follow
// are asked for meanwhile; weights that the second cache doesn't hold then cost 3 to 8 % less (180 to 190 GFLOP/s).
template <class Product, int Rows, int Panels, bool Ahead, class Out>
__attribute__((always_inline)) inline void multiply_tile(InputRows<Product> a, PanelsOf<Product> panels,
                                                         const Out& out) {
  constexpr int kWidth = Panels * kPanelVectors;
  typename Product::Sums sums[Rows][kWidth] = {};
#pragma GCC unroll 4
  for (int64_t k = 0; k < panels.K; ++k) {
    typename Product::Sums weights[kWidth];
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) {
      const int64_t panel = j / kPanelVectors, lane = j % kPanelVectors * kLanes;
      weights[j] = Product::load(panels.data + panel * panels.stride + k * panels.step + lane);
    }
    if constexpr (Ahead) {
#pragma GCC unroll 4
      for (int j = Panels; j < 2 * Panels; ++j) {
        __builtin_prefetch(panels.data + j * panels.stride + k * panels.step, 0, 2);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const auto x = Product::spread(a.data[i * a.stride + k]);
#pragma GCC unroll 8
      for (int j = 0; j < kWidth; ++j) {
        sums[i][j] = Product::add(sums[i][j], x, weights[j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) {
      out(i, j * kLanes, sums[i][j]);
    }
  }
}

// The rows that are left over, fewer than a tile has.
template <class Product, int Rows, int Panels, class Out>
inline void multiply_rest(int64_t rows, InputRows<Product> a, PanelsOf<Product> panels, const Out& out) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      multiply_tile<Product, Rows, Panels, false>(a, panels, out);
    } else {
      multiply_rest<Product, Rows - 1, Panels>(rows, a, panels, out);
    }
  }
}

template <class Product, int Panels, class Out>
inline void multiply_panels(InputRows<Product> a, int64_t rows, PanelsOf<Product> panels, int64_t column,
                            const Out& out) {
  constexpr int kRows = Panels < kTilePanels ? Product::kRows * 3 / 2 : Product::kRows;
  using Sums = typename Product::Sums;
  int64_t row = 0;
  if (rows >= kRows) {
    multiply_tile<Product, kRows, Panels, true>(a, panels, [&](int i, int j, Sums sums) { out(i, column + j, sums); });
    row = kRows;
  }
  for (; row + kRows <= rows; row += kRows) {
    multiply_tile<Product, kRows, Panels, false>(a.from(row), panels,
                                                 [&](int i, int j, Sums sums) { out(row + i, column + j, sums); });
  }
  multiply_rest<Product, kRows - 1, Panels>(rows - row, a.from(row), panels,
                                            [&](int i, int j, Sums sums) { out(row + i, column + j, sums); });
}

// out(row, column, sums) for `rows` rows of `a` times panels [first, last), `column` counting from panel 0.
template <class Product, class Out>
inline void multiply_all(InputRows<Product> a, int64_t rows, PanelsOf<Product> panels, int64_t first, int64_t last,
                         const Out& out) {
  int64_t panel = first;
  if constexpr (kTilePanels == 3) {
    for (; last - panel >= 5 || last - panel == 3; panel += 3) {
      multiply_panels<Product, 3>(a, rows, panels.from(panel), panel * kPanel, out);
    }
    for (; last - panel >= 2; panel += 2) {  // two pairs rather than three and one
      multiply_panels<Product, 2>(a, rows, panels.from(panel), panel * kPanel, out);
    }
  }
  for (; panel < last; ++panel) {
    multiply_panels<Product, 1>(a, rows, panels.from(panel), panel * kPanel, out);
  }
}

// out(row, column, sums) for `rows` rows of `a` [rows, K] (`stride` floats apart) times panels [first, last) of `packed`.
// `column` counts from panel 0; those past N are sums of zeros. A pair of panels is kept in the first cache for all
// rows: give it as many rows as fit the second cache, 64 to 128 of width 256. `out` must not take a lane that is chosen
// at run time out of `sums`: all sums of a tile would live in memory (76 GFLOP/s instead of 165).
template <class Out>
inline void multiply(const float* a, int64_t stride, int64_t rows, const float* packed, int64_t K, int64_t first,
                     int64_t last, const Out& out) {
  multiply_all<Float32>({a, stride}, rows, {packed, K * kPanel, kPanel, K}, first, last, out);
}

// The same for weights that aren't packed: b [K, panels * 16], `b_stride` floats from one input to the next.
template <class Out>
inline void multiply_strided(const float* a, int64_t stride, int64_t rows, const float* b, int64_t b_stride, int64_t K,
                             int64_t panels, const Out& out) {
  multiply_all<Float32>({a, stride}, rows, {b, kPanel, b_stride, K}, 0, panels, out);
}

}  // namespace
}  // namespace marquee
