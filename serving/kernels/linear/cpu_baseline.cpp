#define MARQUEE_LANES 4
#include "linear/cpu_rows_impl.h"

namespace marquee::linear {

void rows_baseline(const Operands& operands, Block block, uint8_t* scratch) {
  rows(operands, block, scratch);
}

}  // namespace marquee::linear
