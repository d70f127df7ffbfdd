#define MARQUEE_LANES 4
#include "decoder/step_impl.h"

namespace marquee::decoder {

void run_baseline(const Step& step, int64_t thread, int64_t num_threads) { run(step, thread, num_threads); }

}  // namespace marquee::decoder
