#pragma GCC target("avx512f,fma")
#define MARQUEE_LANES 16
#include "interaction/cpu_rows_impl.h"

namespace marquee::interaction {

void rows_avx512(const Operands& operands, int64_t begin, int64_t end, int64_t request, float* dots) {
  rows(operands, begin, end, request, dots);
}

}  // namespace marquee::interaction
