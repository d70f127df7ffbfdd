#pragma GCC target("avx2,fma")
#define MARQUEE_LANES 8
#include "linear/cpu_rows_impl.h"

namespace marquee::linear {

void rows_avx2(const Operands& operands, Block block, uint8_t* scratch) {
  rows(operands, block, scratch);
}

}  // namespace marquee::linear
