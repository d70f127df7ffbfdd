#pragma GCC target("avx2,fma")
#define MARQUEE_LANES 8
#include "interaction/cpu_rows_impl.h"

namespace marquee::interaction {

void rows_avx2(const Operands& operands, int64_t begin, int64_t end, int64_t request, float* dots) {
  rows(operands, begin, end, request, dots);
}

}  // namespace marquee::interaction
