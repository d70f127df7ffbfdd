#include "capability.h"

#include <Python.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cstdlib>
#include <string>

namespace marquee {
namespace {

constexpr const char* kVariable = "MARQUEE_CPU_CAPABILITY";

CpuCapability best_supported() {
  if (__builtin_cpu_supports("avx512f")) {
    return CpuCapability::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return CpuCapability::avx2;
  }
  return CpuCapability::baseline;
}

const char* name(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::avx512:
      return "avx512";
    case CpuCapability::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

CpuCapability parse(const std::string& value) {
  for (auto capability : {CpuCapability::baseline, CpuCapability::avx2, CpuCapability::avx512}) {
    if (value == name(capability)) {
      return capability;
    }
  }
  TORCH_CHECK_VALUE(false, kVariable, " is '", value, "'; it must be baseline, avx2 or avx512");
}

std::string cpu_capability_name() { return name(cpu_capability()); }

}  // namespace

CpuCapability cpu_capability() {
  static const CpuCapability best = best_supported();
  const char* value = std::getenv(kVariable);
  if (value == nullptr || *value == '\0') {
    return best;
  }
  const CpuCapability wanted = parse(value);
  TORCH_CHECK_VALUE(wanted <= best, kVariable, " is '", value, "', but this processor goes up to ", name(best));
  return wanted;
}

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
