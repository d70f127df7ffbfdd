"""No function compiled for a newer processor can be linked in for an older one.

The linker keeps one of several functions of the same name (templates, inline functions), whichever file it is from. If
a file that is compiled for AVX-512 defines one that others use too, an older processor dies of it.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from serving.kernels.extension import load_extension

KERNELS = Path(__file__).resolve().parents[2] / "serving/kernels"
SOURCES = sorted(path for path in KERNELS.rglob("cpu_*.cpp"))
NEWER = re.compile(r"_avx(2|512)")
TILE_INSTRUCTION = re.compile(r"\t(?:ldtilecfg|sttilecfg|tile[a-z0-9]+|tdp[a-z0-9]+)(\s|$)")
VECTOR_INSTRUCTION = re.compile(
    rf"\t(v[a-z0-9]+|k[a-z]+[bwdq])(\s|$)|%[yz]mm\d|{TILE_INSTRUCTION.pattern}", re.MULTILINE
)
# What multiplies by AMX, in a file that is compiled for AVX-512.
WITH_TILES = {"candidates-cpu_avx512", "decoder-cpu_avx512", "linear-cpu_avx512"}

needs_binutils = pytest.mark.skipif(
    not all(map(shutil.which, ("g++", "nm", "objdump"))), reason="g++, nm and objdump are not all here"
)


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@needs_binutils
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_file_of_one_instruction_set_shares_no_function(source: Path, tmp_path: Path) -> None:
    """Compiled without optimisation, where nothing is inlined away, all it offers to others bears its name.

    AMX's instructions, which are in assembly and need no flag, are in files for AVX-512 alone.
    """
    compiled = tmp_path / "compiled.o"
    flags = ["-O0", "-std=c++20", "-fPIC", "-fopenmp", "-Wno-psabi", "-I", KERNELS]
    _run("g++", *flags, "-c", source, "-o", compiled)
    # "address kind name": small letters are local to the file.
    symbols = [
        line.split(maxsplit=2)[1:] for line in _run("nm", "-C", "--defined-only", compiled).splitlines()
    ]
    offered = [
        (kind, name)
        for kind, name in symbols
        # DW.ref.*: a pointer to the C++ runtime's own routine for exceptions; data, not code.
        if (kind.isupper() or kind in "uvw") and not name.startswith("DW.ref.")
    ]
    wrong = [
        each for each in offered if each[0] != "T" or f"{source.stem.removeprefix('cpu')}(" not in each[1]
    ]
    assert offered
    assert not wrong
    has_tiles = TILE_INSTRUCTION.search(_run("objdump", "-d", "--no-show-raw-insn", compiled)) is not None
    assert has_tiles == (f"{source.parent.name}-{source.stem}" in WITH_TILES)


@needs_binutils
def test_newer_instructions_are_in_functions_of_that_name_alone() -> None:
    """In the library that is loaded: a function that others could have asked for has none of them."""
    load_extension()
    library = str(importlib.import_module("serving.kernels._C").__file__)
    local = {line.split()[-1] for line in _run("nm", library).splitlines() if line.split()[-2] == "t"}
    newer, wrong = set(), set()
    for function in re.split(r"\n(?=[0-9a-f]+ <)", _run("objdump", "-d", "--no-show-raw-insn", library)):
        name = re.match(r"[0-9a-f]+ <([^>@]+)[^>]*>:", function)
        if name and VECTOR_INSTRUCTION.search(function):
            is_newer = name[1] in local or NEWER.search(name[1])
            (newer if is_newer else wrong).add(name[1])
    assert any("avx2" in name for name in newer), "no function with AVX2: the disassembly is not understood"
    assert not wrong
