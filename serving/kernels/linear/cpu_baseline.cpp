#define MARQUEE_LANES 4
#include "linear/cpu_rows_impl.h"

namespace marquee::linear {

void rows_baseline(const Operands& operands, int64_t begin, int64_t end, uint8_t* scratch) {
  rows(operands, begin, end, scratch);
}

}  // namespace marquee::linear
