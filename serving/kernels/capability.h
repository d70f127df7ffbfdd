// Which instruction set a kernel's CPU path uses: chosen at run time, never at build time.
#pragma once

namespace marquee {

enum class CpuCapability { baseline, avx2, avx512 };

// The best path this processor can run, or the one MARQUEE_CPU_CAPABILITY (baseline, avx2, avx512 or avx512_vnni)
// names. The variable is read at every call. Throws c10::ValueError when it names no path, or one this processor lacks.
CpuCapability cpu_capability();

// Whether the avx512 path may use VNNI, four products of bytes in one instruction: the level above avx512, which
// differs in int8 products alone.
bool cpu_vnni();

}  // namespace marquee
