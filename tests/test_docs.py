"""What the documentation shows is true: its Python blocks run and print what it says, its commands exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from foundation.content import ContentConfig
from foundation.evaluate import EvaluateConfig
from foundation.pretraining import PretrainConfig
from foundation.truncate import TruncateConfig
from ranker.compare import CompareConfig
from ranker.evaluate import EvaluateConfig as EvaluateRankerConfig
from ranker.rows.job import RowsConfig
from ranker.training.cotrain_config import CotrainConfig
from serving.export import ExportConfig
from serving.launch import LaunchConfig

ROOT = Path(__file__).resolve().parents[1]
WORKED_EXAMPLES = tuple(
    ROOT / "docs" / name for name in ("from-event-to-loss.md", "co-training.md", "fast-path.md")
)
PAGES = (*WORKED_EXAMPLES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "GLOSSARY.md")
CONFIGS: dict[str, Any] = {
    "foundation.content": ContentConfig,
    "foundation.evaluate": EvaluateConfig,
    "foundation.pretrain": PretrainConfig,
    "foundation.truncate": TruncateConfig,
    "ranker.compare": CompareConfig,
    "ranker.cotrain": tyro.conf.OmitArgPrefixes[CotrainConfig],
    "ranker.evaluate": EvaluateRankerConfig,
    "ranker.features": RowsConfig,
    "serving.export": ExportConfig,
    "serving.launch": LaunchConfig,
}
# Of torchrun and pip.
FOREIGN_FLAGS = {"--nproc-per-node", "--no-deps", "--standalone", "--max-restarts", "--nnodes"} | {
    "--rdzv-backend",
    "--rdzv-id",
    "--rdzv-endpoint",
}
COMMAND = re.compile(rf"-m ({'|'.join(map(re.escape, CONFIGS))}) (-.*)")


def _commands() -> list[str]:
    """Every whole `… -m LAYER.NAME --FLAG …` of the pages, in a block or in running text."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        in_blocks = [
            line for block in re.findall(r"^```.*?^```", text, re.M | re.S) for line in block.split("\n")
        ]
        in_text = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        candidates = [" ".join(each.split()) for each in (*in_blocks, *in_text)]
        found += [each for each in candidates if COMMAND.search(each) and "…" not in each]
    return sorted(set(found))


@pytest.mark.parametrize("page", WORKED_EXAMPLES, ids=lambda page: page.stem)
def test_a_worked_example_prints_what_it_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```\n```text\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) == text.count("```python\n") >= 5
    session: dict[str, Any] = {}
    for program, says in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program, session)
        assert printed.getvalue() == says


@pytest.mark.parametrize("command", _commands())
def test_a_command_has_the_flags_that_it_is_shown_with(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama.json").write_text("{}", encoding="utf-8")  # the settings of a foreign decoder
    module, words = COMMAND.search(command).groups()  # type: ignore[union-attr]
    tyro.cli(CONFIGS[module], args=shlex.split(words, comments=True))


def test_commands_of_every_layer_are_shown() -> None:
    shown = {COMMAND.search(command).group(1) for command in _commands()}  # type: ignore[union-attr]
    assert shown == set(CONFIGS)


@pytest.mark.parametrize("page", WORKED_EXAMPLES, ids=lambda page: page.stem)
def test_the_flags_of_a_worked_example_exist(page: Path, capsys) -> None:
    offered = set(FOREIGN_FLAGS)
    for config in CONFIGS.values():
        with pytest.raises(SystemExit):
            tyro.cli(config, args=["--help"])
        offered |= set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    shown = set(re.findall(r"--[a-z][\w.-]*\w", page.read_text(encoding="utf-8")))
    assert len(shown) > (0 if page.stem == "fast-path" else 20)
    assert sorted(shown - offered) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if link and not (page.parent / link).exists()]
