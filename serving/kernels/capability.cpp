#include "capability.h"

#include <Python.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace marquee {
namespace {

constexpr const char* kVariable = "MARQUEE_CPU_CAPABILITY";
constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_vnni"};
constexpr int kAvx2 = 1, kAvx512 = 2, kVnni = 3, kLevels = 4;

int best_supported() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) {
    return __builtin_cpu_supports("avx512vnni") ? kVnni : kAvx512;
  }
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? kAvx2 : 0;
}

int parse(const std::string& value) {
  for (int level = 0; level < kLevels; ++level) {
    if (value == kNames[level]) {
      return level;
    }
  }
  TORCH_CHECK_VALUE(false, kVariable, " is '", value, "'; it must be baseline, avx2, avx512 or avx512_vnni");
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

bool cpu_vnni() { return level() == kVnni; }

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
