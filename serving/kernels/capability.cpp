#include "capability.h"

#include <Python.h>
#include <c10/util/Exception.h>
#include <cpuid.h>
#include <sys/syscall.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace marquee {
namespace {

constexpr const char* kVariable = "MARQUEE_CPU_CAPABILITY";
constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_vnni", "amx"};
constexpr int kAvx2 = 1, kAvx512 = 2, kVnni = 3, kAmx = 4, kLevels = 5;

// Linux keeps tile registers from a process until it asks for them (arch_prctl(2); once for all of its threads).
bool amx_granted() {
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25, kNeeded = kBfloat16 | kTiles | kInt8;
  constexpr long kAskFor = 0x1023 /* ARCH_REQ_XCOMP_PERM */, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, features = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &features) && (features & kNeeded) == kNeeded &&
         syscall(SYS_arch_prctl, kAskFor, kTileData) == 0;
}

int best_supported() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) {
    return !__builtin_cpu_supports("avx512vnni") ? kAvx512 : amx_granted() ? kAmx : kVnni;
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? kAvx2 : 0;
}

int parse(const std::string& value) {
  for (int level = 0; level < kLevels; ++level) {
    if (value == kNames[level]) {
      return level;
    }
  }
  TORCH_CHECK_VALUE(false, kVariable, " is '", value, "'; it must be baseline, avx2, avx512, avx512_vnni or amx");
}

int level() {
  static const int best = best_supported();
  const char* value = std::getenv(kVariable);
  if (value == nullptr || *value == '\0') {
    return best;
  }
  const int wanted = parse(value);
  TORCH_CHECK_VALUE(wanted <= best, kVariable, " is '", value, "', but this processor goes up to ", kNames[best]);
  return wanted;
}

std::string cpu_capability_name() { return kNames[level()]; }

}  // namespace

CpuCapability cpu_capability() { return static_cast<CpuCapability>(std::min(level(), kAvx512)); }

Extra cpu_extra() { return static_cast<Extra>(std::max(level() - kAvx512, 0)); }

}  // namespace marquee

TORCH_LIBRARY_FRAGMENT(marquee, library) {
  library.def("cpu_capability() -> str", &marquee::cpu_capability_name);
}

// An empty Python module: importing it loads the shared library, and loading registers the operators.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                                   nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
