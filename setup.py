"""Builds the C++ kernels as one torch extension, `serving.kernels._C`; everything else is in pyproject.toml.

`MARQUEE_SANITIZE=1` builds them with AddressSanitizer and UndefinedBehaviorSanitizer, for `tests/sanitize.py` alone.
"""

import os
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

KERNELS = Path("serving/kernels")

SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow"]
# -fno-wrapv: Python's own flags define signed overflow, which would hide it. The assertions watch std::vector's bounds.
SANITIZED = [
    *SANITIZERS,
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-fno-wrapv",
    "-D_GLIBCXX_ASSERTIONS",
]
OPTIMISED = ["-O3", "-g0"]
sanitize = os.environ.get("MARQUEE_SANITIZE") == "1"

setup(
    ext_modules=[
        CppExtension(
            "serving.kernels._C",
            sources=sorted(str(path) for path in KERNELS.rglob("*.cpp")),
            include_dirs=[str(KERNELS.resolve())],
            # No -march: one binary serves every x86-64 processor, and each kernel picks its path at run time.
            # -fopenmp: at::parallel_for is only parallel in code compiled with it.
            extra_compile_args=[
                *(["-O1", "-g1", *SANITIZED] if sanitize else OPTIMISED),
                *["-ffp-contract=fast", "-fopenmp", "-Wall"],
            ],
            extra_link_args=["-fopenmp", *(SANITIZERS if sanitize else [])],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
