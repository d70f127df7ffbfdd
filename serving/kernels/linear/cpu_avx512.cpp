#pragma GCC target("avx512f,avx512bw,fma")
#define MARQUEE_LANES 16
#include "linear/cpu_rows_impl.h"

namespace marquee::linear {

void rows_avx512(const Operands& operands, Block block, uint8_t* scratch) {
  rows(operands, block, scratch);
}

}  // namespace marquee::linear
