// Rows times panels on AMX, a processor's unit for products of small matrices: tiles of 16 rows of 64 bytes. Bytes
// here; float32 in split_impl.h. Each output is added up over K in the same order whichever rows and panels it is
// computed with.
//
// In assembly, as a processor without AMX runs what is around it. Included after `#pragma GCC target` and
// MARQUEE_LANES, see lanes_impl.h.
#pragma once

#include "lanes_impl.h"
#include "linear/int8_impl.h"
#include "linear/panels.h"

#if MARQUEE_LANES == 16

namespace marquee {
namespace {

// Tiles 0 to 3 hold sums of two tiles of rows (in 4 and 5) by two panels (in 6 and 7).
#define MARQUEE_LOAD_TILE(tile, from, stride)                 \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile             \
               : /* "m": it reads memory, from here to anywhere */ \
               : "r"(from), "r"(static_cast<int64_t>(stride)), "m"(*reinterpret_cast<const char(*)[]>(from)))
#define MARQUEE_STORE_TILE(tile, to, stride)                  \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)"         \
               :                                              \
               : "r"(to), "r"(static_cast<int64_t>(stride))   \
               : "memory")
#define MARQUEE_ADD_PRODUCT(instruction, sums, rows, panel) \
  asm volatile(instruction " %%tmm" #panel ", %%tmm" #rows ", %%tmm" #sums : :)

constexpr int64_t kTileLine = 64, kTileBytes = 16 * kTileLine;
constexpr int64_t kGroupColumns = 2 * kPanel, kSumsLine = 4 * kGroupColumns;

// The thread's tile registers have their shape while this lives.
struct TileRegisters {
  TileRegisters() {
    alignas(64) uint8_t shape[64] = {1};
    for (int tile = 0; tile < 8; ++tile) {
      shape[16 + 2 * tile] = kTileLine;
      shape[48 + tile] = 16;
    }
    asm volatile("ldtilecfg (%0)" : : "r"(shape) : "memory");
  }
  ~TileRegisters() { asm volatile("tilerelease" : :); }
  TileRegisters(const TileRegisters&) = delete;
};

// Of 16 rows (kTiles 1) or 32 (2), times two panels; sums are [32, 32] values.
template <int kTiles>
inline void zero_sums() {
  asm volatile("tilezero %%tmm0\n\ttilezero %%tmm1" : :);
  if constexpr (kTiles == 2) {
    asm volatile("tilezero %%tmm2\n\ttilezero %%tmm3" : :);
  }
}

template <int kTiles, class Value>
inline void load_sums(const Value* sums) {
  MARQUEE_LOAD_TILE(0, sums, kSumsLine);
  MARQUEE_LOAD_TILE(1, sums + kPanel, kSumsLine);
  if constexpr (kTiles == 2) {
    MARQUEE_LOAD_TILE(2, sums + 16 * kGroupColumns, kSumsLine);
    MARQUEE_LOAD_TILE(3, sums + 16 * kGroupColumns + kPanel, kSumsLine);
  }
}

template <int kTiles, class Value>
inline void store_sums(Value* sums) {
  MARQUEE_STORE_TILE(0, sums, kSumsLine);
  MARQUEE_STORE_TILE(1, sums + kPanel, kSumsLine);
  if constexpr (kTiles == 2) {
    MARQUEE_STORE_TILE(2, sums + 16 * kGroupColumns, kSumsLine);
    MARQUEE_STORE_TILE(3, sums + 16 * kGroupColumns + kPanel, kSumsLine);
  }
}

// Lines are `stride` bytes apart, the second tile begins `second` bytes after the first.
template <int kTiles>
__attribute__((always_inline)) inline void load_rows(const uint8_t* rows, int64_t stride, int64_t second) {
  MARQUEE_LOAD_TILE(4, rows, stride);
  if constexpr (kTiles == 2) {
    MARQUEE_LOAD_TILE(5, rows + second, stride);
  }
}

__attribute__((always_inline)) inline void load_panels(const uint8_t* panel, int64_t second) {
  MARQUEE_LOAD_TILE(6, panel, kTileLine);
  MARQUEE_LOAD_TILE(7, panel + second, kTileLine);
}

template <int kCount>
struct Tiles {
  static constexpr int kTiles = kCount;
};

// Calls run(one or two tiles) for the rows of a group that there are.
template <class Run>
inline void by_tiles(int64_t rows, const Run& run) {
  if (rows > 16) {
    run(Tiles<2>{});
  } else {
    run(Tiles<1>{});
  }
}

// out(row, column, sums) for quantised rows times panels [first, last) of int8 weights; K is a multiple of 64.
template <class Out>
inline void multiply_bytes(const uint8_t* rows, int64_t count, const uint8_t* packed, int64_t K, int64_t first,
                           int64_t last, const Out& out) {
  const int64_t stride = byte_stride(K);
  alignas(64) int32_t sums[kGroupRows * kGroupColumns];
  const TileRegisters registers;
  for (int64_t panel = first; panel < last; panel += 2) {
    const uint8_t* own = packed + panel * K * kPanel;
    const int64_t second = last - panel < 2 ? 0 : K * kPanel;
    for (int64_t row = 0; row < count; row += kGroupRows) {
      by_tiles(count - row, [&](auto tiles) {
        constexpr int kTiles = decltype(tiles)::kTiles;
        zero_sums<kTiles>();
        for (int64_t k = 0; k < K; k += kTileLine) {
          load_rows<kTiles>(rows + row * stride + k, stride, 16 * stride);
          load_panels(own + k * kPanel, second);
          MARQUEE_ADD_PRODUCT("tdpbusd", 0, 4, 6);
          MARQUEE_ADD_PRODUCT("tdpbusd", 1, 4, 7);
          if constexpr (kTiles == 2) {
            MARQUEE_ADD_PRODUCT("tdpbusd", 2, 5, 6);
            MARQUEE_ADD_PRODUCT("tdpbusd", 3, 5, 7);
          }
        }
        store_sums<kTiles>(sums);
      });
      for (int64_t i = 0; i < kGroupRows && row + i < count; ++i) {
        const auto* values = reinterpret_cast<const IntUnaligned*>(sums + i * kGroupColumns);
        out(row + i, panel * kPanel, values[0]);
        if (last - panel > 1) {
          out(row + i, (panel + 1) * kPanel, values[1]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace marquee

#endif
