#pragma GCC target("avx512f,avx512bw,fma")
#define MARQUEE_LANES 16
#include "decoder/step_impl.h"

namespace marquee::decoder {

void run_avx512(const Step& step, int64_t thread, int64_t num_threads) { run(step, thread, num_threads); }

}  // namespace marquee::decoder
