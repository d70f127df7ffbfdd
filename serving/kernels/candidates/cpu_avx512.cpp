#pragma GCC target("avx512f,avx512bw,fma")
#define MARQUEE_LANES 16
#include "candidates/tiles_impl.h"

namespace marquee::candidates {

void score_tile_avx512(const Operands& operands, Worker& worker, int64_t tile, int64_t next) {
  score_tile(operands, worker, tile, next);
}

}  // namespace marquee::candidates
