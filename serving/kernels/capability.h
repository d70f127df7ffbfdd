// Which instruction set a kernel's CPU path uses: chosen at run time, never at build time.
#pragma once

namespace marquee {

enum class CpuCapability { baseline, avx2, avx512 };

// What the avx512 path may use beyond AVX-512 itself: VNNI, four products of bytes in one instruction; and AMX,
// products of whole tiles. Each level has those before it.
enum class Extra { none, vnni, amx };

// The best path this processor can run, or the one MARQUEE_CPU_CAPABILITY (baseline, avx2, avx512, avx512_vnni or amx)
// names. The variable is read at every call. Throws c10::ValueError when it names no path, or one this processor lacks.
CpuCapability cpu_capability();
Extra cpu_extra();

}  // namespace marquee
