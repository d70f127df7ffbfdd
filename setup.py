"""Builds the C++ kernels as one torch extension, `serving.kernels._C`; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

KERNELS = Path("serving/kernels")

setup(
    ext_modules=[
        CppExtension(
            "serving.kernels._C",
            sources=sorted(str(path) for path in KERNELS.rglob("*.cpp")),
            include_dirs=[str(KERNELS.resolve())],
            # No -march: one binary serves every x86-64 processor, and each kernel picks its path at run time.
            # -fopenmp: at::parallel_for is only parallel in code compiled with it.
            extra_compile_args=["-O3", "-ffp-contract=fast", "-fopenmp", "-Wall", "-g0"],
            extra_link_args=["-fopenmp"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
