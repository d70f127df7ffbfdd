"""Tasks: what the files of the two sources declare, and errors that say what would be right."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from foundation.errors import DataError
from foundation.sources.movielens_schema import SCHEMA_TOML
from ranker.schema import Task, are_logged, load_tasks


def write(folder: Path, tasks: str) -> Path:
    path = folder / "schema.toml"
    facets = (
        '[[facet]]\nname = "rating"\nrole = "what"\nkind = "numeric"\nboundaries = [3.5]\n'
        '[[facet]]\nname = "device"\nrole = "where"\nkind = "categorical"\n'
    )
    path.write_text(f'name = "own"\n{facets}{tasks}', encoding="utf-8")
    return path


def test_movielens_declares_watch_and_like(tmp_path: Path) -> None:
    path = tmp_path / "schema.toml"
    path.write_text(SCHEMA_TOML.format(size="1m"), encoding="utf-8")
    watch, like = load_tasks(path)
    assert watch == Task("watch", "interaction")
    assert like == Task("like", "threshold", facet="rating", at_least=4.0)
    assert not are_logged((watch, like))


def test_synthetic_world_declares_logged_labels(synthetic_folder: Path) -> None:
    tasks = load_tasks(synthetic_folder / "schema.toml")
    assert [task.name for task in tasks] == ["watch", "like"]
    assert are_logged(tasks)


def test_a_task_survives_plain_values(tmp_path: Path) -> None:
    (task,) = load_tasks(
        write(tmp_path, '[[task]]\nname = "like"\nkind = "threshold"\nfacet = "rating"\nat_least = 4\n')
    )
    assert Task(**asdict(task)) == task


def test_logged_tasks_may_have_a_threshold_a_window_and_a_share_of_negatives(tmp_path: Path) -> None:
    tasks = load_tasks(
        write(
            tmp_path,
            '[[task]]\nname = "like"\nkind = "column"\ncolumn = "stars"\nat_least = 4\nnegatives_kept = 0.1\n'
            '[[task]]\nname = "watch"\nkind = "window"\nwithin_s = 3600\nfacet = "rating"\nat_least = 3\n',
        )
    )
    assert tasks == (
        Task("like", "column", at_least=4.0, column="stars", negatives_kept=0.1),
        Task("watch", "window", facet="rating", at_least=3.0, within_s=3600),
    )
    assert are_logged(tasks)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("", "declares no [[task]]"),
        ('[task]\nname = "watch"\n', "array of tables"),
        ('[[task]]\nkind = "interaction"\n', "name = None"),
        ('[[task]]\nname = "watch"\n', "kind = None: must be one of interaction, threshold, column, window"),
        ('[[task]]\nname = "watch"\nkind = "interaction"\nfacet = "rating"\n', "unknown field 'facet'"),
        ('[[task]]\nname = "like"\nkind = "threshold"\nfacet = "rating"\n', "has no 'at_least'"),
        (
            '[[task]]\nname = "like"\nkind = "threshold"\nfacet = "device"\nat_least = 1\n',
            "facet = 'device': must be a numeric 'what' facet, one of: rating",
        ),
        (
            '[[task]]\nname = "like"\nkind = "threshold"\nfacet = "rating"\nat_least = "4"\n',
            "at_least = '4': must be a number",
        ),
        ('[[task]]\nname = "watch"\nkind = "column"\ncolumn = ""\n', "column = ''"),
        ('[[task]]\nname = "watch"\nkind = "interaction"\n' * 2, "declared twice"),
        (
            '[[task]]\nname = "a"\nkind = "interaction"\n[[task]]\nname = "b"\nkind = "column"\ncolumn = "b"\n',
            "give every task kind = 'column' or 'window', or none",
        ),
        ('[[task]]\nname = "watch"\nkind = "window"\n', "has no 'within_s'"),
        ('[[task]]\nname = "watch"\nkind = "window"\nwithin_s = 0\n', "within_s = 0: must be whole seconds"),
        (
            '[[task]]\nname = "like"\nkind = "window"\nwithin_s = 60\nfacet = "rating"\n',
            "facet and at_least belong together",
        ),
        (
            '[[task]]\nname = "watch"\nkind = "column"\ncolumn = "w"\nnegatives_kept = 0\n',
            "negatives_kept = 0: must be a share",
        ),
    ],
)
def test_errors_name_the_field_and_what_would_be_right(tmp_path: Path, tasks: str, said: str) -> None:
    with pytest.raises(DataError) as raised:
        load_tasks(write(tmp_path, tasks))
    message = str(raised.value)
    assert said in message
    assert "schema.toml" in message
    assert "\n" not in message
