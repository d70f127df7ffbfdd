"""The architecture, kept by walking the source: who imports whom, and how large things get.

foundation  <-  ranker  <-  serving  <-  benchmarks      (A <- B: B may import A)
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["foundation", "ranker", "serving", "benchmarks"]
LEAVES = ["serving.contract", "serving.client", "serving.kernels"]
CLIENT_SIDE_PACKAGES = {"numpy", "tritonclient", "xxhash"}
ENTRY_POINTS = [
    "foundation.pretrain",
    "foundation.evaluate",
    "foundation.content",
    "foundation.truncate",
    "ranker.cotrain",
    "serving.export",
    "serving.launch",
]
SERVER_PACKAGES = {"tritonclient", "pytriton"}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 120
MAX_CONSTRUCTOR_ARGUMENTS = 5
CPP_FUNCTION = re.compile(r"^[A-Za-z][^;{}\n]*\([^;{}]*\)[^;{}]*\{\n.*?^\}$", re.MULTILINE | re.DOTALL)
"""A definition that begins and ends in the first column, as clang-format leaves it."""


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function, by its full name."""
    package = _module(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
            origin = ".".join(base) if node.level else str(node.module)
            names |= {_submodule(origin, alias.name) for alias in node.names}
    return names


def _submodule(origin: str, name: str) -> str:
    """`origin.name` where that is a module of ours, else `origin`."""
    candidate = ROOT.joinpath(*origin.split("."), name)
    return f"{origin}.{name}" if candidate.with_suffix(".py").is_file() or candidate.is_dir() else origin


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _ours() -> Iterator[tuple[str, set[str]]]:
    for path in _files(*LAYERS):
        yield _module(path), _imports(path)


def test_imports_follow_the_arrows() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, names in _ours()
        for name in names
        for above in LAYERS[LAYERS.index(module.split(".")[0]) + 1 :]
        if _within(name, above)
    ]
    assert not wrong


def test_no_import_goes_in_a_circle() -> None:
    modules = dict(_ours())
    graph = {
        module: {name for name in names if name in modules} - {module} for module, names in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as cycle:
        pytest.fail(f"import cycle: {' -> '.join(cycle.args[1])}")


def test_leaves_of_serving_lean_on_nothing_of_ours() -> None:
    """A leaf imports leaves, or modules that themselves lead to nothing but leaves' packages."""
    modules = dict(_ours())
    reached = {module for module in modules if any(_within(module, leaf) for leaf in LEAVES)}
    while more := {name for module in reached for name in modules[module] if name in modules} - reached:
        reached |= more
    assert not {module for module in reached if not _within(module, "serving")}


@pytest.mark.parametrize("leaf", ["serving.contract", "serving.client"])
def test_the_client_side_needs_three_packages(leaf: str) -> None:
    modules = dict(_ours())
    reached, todo = set(), [leaf]
    while todo:
        module = todo.pop()
        reached.add(module)
        todo += [name for name in modules[module] if name in modules and name not in reached]
    packages = {name.split(".")[0] for module in reached for name in modules[module]}
    assert packages - sys.stdlib_module_names - {"serving"} <= CLIENT_SIDE_PACKAGES


def test_nobody_imports_an_entry_point() -> None:
    commands = [_module(path) for path in _files(*LAYERS) if _has_main_guard(path)]
    assert set(ENTRY_POINTS) <= set(commands), "an entry point that can't be run with python -m"
    entry_points = {*ENTRY_POINTS, *(module for module in commands if _within(module, "benchmarks"))}
    wrong = [
        f"{module} imports {name}" for module, names in _ours() for name in names if name in entry_points
    ]
    assert not wrong


def _has_main_guard(path: Path) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in _tree(path).body
    )


def test_nobody_imports_tests_or_benchmarks() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, names in [*_ours(), *((_module(path), _imports(path)) for path in _files("tests"))]
        for name in names
        if _within(name, "tests")
        or (_within(name, "benchmarks") and module.split(".")[0] not in ("benchmarks", "tests"))
    ]
    assert not wrong


def test_the_ranker_needs_no_server_and_no_client() -> None:
    wrong = [
        f"{_module(path)} imports {name}"
        for path in _files("foundation", "ranker")
        for name in _imports(path)
        if name.split(".")[0] in SERVER_PACKAGES
    ]
    assert not wrong


def test_operators_import_nothing_but_torch() -> None:
    """Schema and dispatch load anywhere: the kernel language is imported when a GPU kernel is called."""
    for path in (ROOT / "serving/kernels").rglob("*.py"):
        if path.name == "gpu.py":
            continue
        at_the_top = ast.Module(
            [node for node in _tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)], []
        )
        for node in at_the_top.body:
            origin = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name  # type: ignore[union-attr]
            package = str(origin).split(".")[0]
            assert package in {*sys.stdlib_module_names, "torch", "serving"}, f"{path}: {origin}"


@pytest.mark.parametrize("module", ["serving.contract", "serving.client"])
def test_the_client_side_imports_without_torch(module: str) -> None:
    program = f"import sys; sys.modules['torch'] = None; import {module}; assert 'polars' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr


def test_files_are_named_by_their_content() -> None:
    vague = {"utils", "util", "common", "helpers", "misc"}
    assert not [
        path for path in _files(*LAYERS, "tests") if vague & set(path.relative_to(ROOT).with_suffix("").parts)
    ]


def test_package_files_stay_nearly_empty() -> None:
    """They import nothing, but for what sets an environment variable before torch is loaded."""
    found = {_module(path): _imports(path) for path in _files(*LAYERS) if path.name == "__init__.py"}
    allowed = {"foundation": {"os"}, "ranker": {"foundation"}, "benchmarks": {"foundation"}}
    assert {name: modules for name, modules in found.items() if modules} == allowed


def test_folders_of_tests_are_no_packages() -> None:
    assert not [path for path in _files("tests") if path.name == "__init__.py"]


def test_files_stay_small() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in _files(*LAYERS, "tests")}
    assert not {_module(path): lines for path, lines in sizes.items() if lines > MAX_FILE_LINES}


def test_functions_stay_small() -> None:
    large = []
    for path in _files(*LAYERS, "tests"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > (MAX_KERNEL_LINES if path.name == "gpu.py" else MAX_FUNCTION_LINES):
                    large.append(f"{_module(path)}.{node.name}: {lines} lines")
    assert not large


def test_cpp_files_and_functions_stay_small() -> None:
    large = []
    for path in sorted((ROOT / "serving/kernels").rglob("*")):
        if path.suffix not in (".cpp", ".h"):
            continue
        source = path.read_text(encoding="utf-8")
        if (lines := len(source.splitlines())) > MAX_FILE_LINES:
            large.append(f"{path.relative_to(ROOT)}: {lines} lines")
        most = MAX_KERNEL_LINES if path.stem.endswith("_impl") else MAX_FUNCTION_LINES
        for function in CPP_FUNCTION.findall(source):
            if (lines := len(function.splitlines())) > most:
                large.append(f"{path.relative_to(ROOT)}, {function.splitlines()[0]}: {lines} lines")
    assert not large


def test_constructors_take_few_arguments() -> None:
    """At most five besides a config; a dataclass lists fields, which is another thing."""
    wide = []
    for path in _files(*LAYERS):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                arguments = [*node.args.args[1:], *node.args.kwonlyargs]
                others = [argument for argument in arguments if not argument.arg.endswith("config")]
                if len(others) > MAX_CONSTRUCTOR_ARGUMENTS:
                    wide.append(f"{_module(path)}:{node.lineno}: {[argument.arg for argument in others]}")
    assert not wide
