#pragma GCC target("avx2,fma")
#define MARQUEE_LANES 8
#include "decoder/step_impl.h"

namespace marquee::decoder {

void run_avx2(const Step& step, int64_t thread, int64_t num_threads) { run(step, thread, num_threads); }

}  // namespace marquee::decoder
