#define MARQUEE_LANES 4
#include "candidates/tiles_impl.h"

namespace marquee::candidates {

void score_tile_baseline(const Operands& operands, Worker& worker, int64_t tile, int64_t next) {
  score_tile(operands, worker, tile, next);
}

}  // namespace marquee::candidates
