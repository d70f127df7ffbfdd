#pragma GCC target("avx2,fma")
#define MARQUEE_LANES 8
#include "candidates/tiles_impl.h"

namespace marquee::candidates {

void score_tile_avx2(const Operands& operands, Worker& worker, int64_t tile, int64_t next) {
  score_tile(operands, worker, tile, next);
}

}  // namespace marquee::candidates
