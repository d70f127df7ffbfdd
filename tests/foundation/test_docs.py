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

ROOT = Path(__file__).resolve().parents[2]
WORKED_EXAMPLE = ROOT / "docs" / "from-event-to-loss.md"
PAGES = (WORKED_EXAMPLE, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "GLOSSARY.md")
CONFIGS = {
    "content": ContentConfig,
    "evaluate": EvaluateConfig,
    "pretrain": PretrainConfig,
    "truncate": TruncateConfig,
}


def _commands() -> list[str]:
    """Every whole `… -m foundation.NAME --FLAG …` of the pages, in a block or in running text."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        in_blocks = [
            line for block in re.findall(r"^```.*?^```", text, re.M | re.S) for line in block.split("\n")
        ]
        in_text = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        candidates = [" ".join(each.split()) for each in (*in_blocks, *in_text)]
        found += [each for each in candidates if re.search(r"-m foundation\.\w+ -", each) and "…" not in each]
    return sorted(set(found))


def test_the_worked_example_prints_what_it_says() -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```\n```text\n(.*?)^```$",
        WORKED_EXAMPLE.read_text(encoding="utf-8"),
        re.M | re.S,
    )
    assert len(blocks) == WORKED_EXAMPLE.read_text(encoding="utf-8").count("```python\n") >= 5
    session: dict[str, Any] = {}
    for program, says in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program, session)
        assert printed.getvalue() == says


@pytest.mark.parametrize("command", _commands())
def test_a_command_has_the_flags_that_it_is_shown_with(command: str) -> None:
    module, words = re.search(r"-m foundation\.(\w+) (.*)", command).groups()  # type: ignore[union-attr]
    tyro.cli(CONFIGS[module], args=shlex.split(words, comments=True))


def test_the_flags_of_the_worked_example_exist(capsys) -> None:
    offered = {"--nproc-per-node", "--no-deps"}
    for config in CONFIGS.values():
        with pytest.raises(SystemExit):
            tyro.cli(config, args=["--help"])
        offered |= set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    shown = set(re.findall(r"--[a-z][\w.-]*\w", WORKED_EXAMPLE.read_text(encoding="utf-8")))
    assert len(shown) > 20
    assert not shown - offered


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if link and not (page.parent / link).exists()]
