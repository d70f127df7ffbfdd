// float32 rows times packed panels. Included after `#pragma GCC target` and MARQUEE_LANES, see lanes_impl.h.
//
// Each output is summed over K in the same order whichever rows and panels it is computed with, so that a row's result
// never depends on what else is in the batch.
#pragma once

#include "lanes_impl.h"
#include "linear/panels.h"

namespace marquee {
namespace {

// A tile of sums that fills the registers: rows by panels of kPanel / kLanes vectors. Measured on AVX-512 in GFLOP/s of
// one core at K = 256: 14 x 2 panels 175, 12 x 2 193, 6 x 4 185; on AVX2 6 x 1 111, 4 x 1 99.
#if MARQUEE_LANES == 16
constexpr int kTileRows = 12, kTilePanels = 2;
#elif MARQUEE_LANES == 8
constexpr int kTileRows = 6, kTilePanels = 1;
#else
constexpr int kTileRows = 2, kTilePanels = 1;
#endif
constexpr int kPanelVectors = kPanel / kLanes;

// out(row, column, sums) for Rows x (Panels * kPanel) outputs, kLanes columns at a time. A panel's 16 weights of input k
// lie at panels + k * step, the next panel's `panel_stride` floats on.
template <int Rows, int Panels, class Out>
__attribute__((always_inline)) inline void multiply_tile(const float* a, int64_t stride, const float* panels,
                                                         int64_t panel_stride, int64_t step, int64_t K,
                                                         const Out& out) {
  constexpr int kWidth = Panels * kPanelVectors;
  Vector sums[Rows][kWidth] = {};
  for (int64_t k = 0; k < K; ++k) {
    Vector weights[kWidth];
#pragma GCC unroll 8
    for (int j = 0; j < kWidth; ++j) {
      weights[j] = load(panels + (j / kPanelVectors) * panel_stride + k * step + (j % kPanelVectors) * kLanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vector x = splat(a[i * stride + k]);
#pragma GCC unroll 8
      for (int j = 0; j < kWidth; ++j) {
        sums[i][j] += x * weights[j];
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
template <int Rows, int Panels, class Out>
inline void multiply_rest(int64_t rows, const float* a, int64_t stride, const float* panels, int64_t panel_stride,
                          int64_t step, int64_t K, const Out& out) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      multiply_tile<Rows, Panels>(a, stride, panels, panel_stride, step, K, out);
    } else {
      multiply_rest<Rows - 1, Panels>(rows, a, stride, panels, panel_stride, step, K, out);
    }
  }
}

template <int Panels, class Out>
inline void multiply_panels(const float* a, int64_t stride, int64_t rows, const float* panels, int64_t panel_stride,
                            int64_t step, int64_t K, int64_t column, const Out& out) {
  int64_t row = 0;
  for (; row + kTileRows <= rows; row += kTileRows) {
    multiply_tile<kTileRows, Panels>(a + row * stride, stride, panels, panel_stride, step, K,
                                     [&](int i, int j, Vector sums) { out(row + i, column + j, sums); });
  }
  multiply_rest<kTileRows - 1, Panels>(rows - row, a + row * stride, stride, panels, panel_stride, step, K,
                                       [&](int i, int j, Vector sums) { out(row + i, column + j, sums); });
}

// out(row, column, sums) for `rows` rows of `a` [rows, K] (`stride` floats apart) times panels [first, last) of `packed`.
// `column` counts from panel 0; those past N are sums of zeros. A pair of panels is kept in the first cache for all
// rows: give it as many rows as fit the second cache, 64 to 128 of width 256.
template <class Out>
inline void multiply(const float* a, int64_t stride, int64_t rows, const float* packed, int64_t K, int64_t first,
                     int64_t last, const Out& out) {
  const int64_t size = K * kPanel;
  int64_t panel = first;
  for (; panel + kTilePanels <= last; panel += kTilePanels) {
    multiply_panels<kTilePanels>(a, stride, rows, packed + panel * size, size, kPanel, K, panel * kPanel, out);
  }
  for (; panel < last; ++panel) {
    multiply_panels<1>(a, stride, rows, packed + panel * size, size, kPanel, K, panel * kPanel, out);
  }
}

// The same for weights that aren't packed: b [K, panels * 16], `b_stride` floats from one input to the next.
template <class Out>
inline void multiply_strided(const float* a, int64_t stride, int64_t rows, const float* b, int64_t b_stride, int64_t K,
                             int64_t panels, const Out& out) {
  int64_t panel = 0;
  for (; panel + kTilePanels <= panels; panel += kTilePanels) {
    const int64_t column = panel * kPanel;
    multiply_panels<kTilePanels>(a, stride, rows, b + column, kPanel, b_stride, K, column, out);
  }
  for (; panel < panels; ++panel) {
    multiply_panels<1>(a, stride, rows, b + panel * kPanel, kPanel, b_stride, K, panel * kPanel, out);
  }
}

}  // namespace
}  // namespace marquee
