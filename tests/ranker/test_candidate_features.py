"""Features that a candidate has in one request only: declared, read from logs, known from training, looked up."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.ingestion import Table
from foundation.raw_values import NO_NUMBER, NO_VALUE, hash_string
from foundation.schema import load_schema
from foundation.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY
from ranker.features.candidate_features import CandidateFeature, CandidateFeatures, known_features
from ranker.requests.candidate_values import candidate_values
from ranker.rows.folder import RowFolder
from ranker.rows.job import RowsConfig, make_rows
from ranker.rows.manifest import PARTS
from ranker.schema import load_candidate_features, load_tasks

WATCH = '[[task]]\nname = "watch"\nkind = "column"\ncolumn = "label_watch"\n'
SCORE = CandidateFeature("retrieval", "numeric", "scores", boundaries=(0.5,))
ROW = CandidateFeature("row", "categorical", "rows")
POSITION = CandidateFeature("position", "categorical", "positions", training_only=True, at_serving=0)


def write(folder: Path, text: str, tasks: str = WATCH) -> Path:
    path = folder / "schema.toml"
    path.write_text(f'name = "own"\n{tasks}{text}', encoding="utf-8")
    return path


def feature(**fields: object) -> str:
    """A `[[candidate_feature]]` table in TOML."""
    lines = (f"{key} = {json.dumps(value)}" for key, value in fields.items())
    return "\n".join(("[[candidate_feature]]", *lines, ""))


def table_of(folder: Path, columns: dict[str, Sequence[object]]) -> Table:
    path = folder / "requests.parquet"
    pl.DataFrame(columns, strict=False).write_parquet(path)
    return Table(path, list(columns))


def test_the_synthetic_world_declares_a_position_that_serving_fixes(synthetic_folder: Path) -> None:
    declared = load_candidate_features(synthetic_folder / "schema.toml")
    assert declared == (POSITION,)
    assert CandidateFeatures(known_features(declared, {"position": np.arange(3)}).known).asked_for == ()


def test_declared_features_are_read_in_order(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        feature(name="retrieval", kind="numeric", column="scores", boundaries=[0.5])
        + feature(name="row", kind="categorical", column="rows", vocabulary_size=9)
        + feature(name="slot", kind="categorical", training_only=True, at_serving="top")
        + feature(name="shown_first", kind="categorical", training_only=True, at_serving=True)
        + feature(name="bid", kind="numeric", training_only=True, at_serving=2)
        + feature(name="seen", kind="categorical", training_only=True),
    )
    assert load_candidate_features(path) == (
        SCORE,
        CandidateFeature("row", "categorical", "rows", 9),
        CandidateFeature("slot", "categorical", "slot", training_only=True, at_serving=hash_string("top")),
        CandidateFeature("shown_first", "categorical", "shown_first", training_only=True, at_serving=1),
        CandidateFeature("bid", "numeric", "bid", training_only=True, at_serving=2.0),
        CandidateFeature("seen", "categorical", "seen", training_only=True),
    )


def test_the_readme_declares_what_can_be_read(tmp_path: Path) -> None:
    readme = Path(__file__).resolve().parents[2] / "README.md"
    schema, tasks, features = re.findall(
        r"^```toml\n(.*?)^```$", readme.read_text(encoding="utf-8"), re.M | re.S
    )
    path = tmp_path / "schema.toml"
    path.write_text(schema, encoding="utf-8")
    assert [task.kind for task in load_tasks(path)] == ["interaction", "threshold"]
    path.write_text(schema.partition("[[task]]")[0] + tasks + features, encoding="utf-8")
    assert [task.kind for task in load_tasks(path)] == ["column", "window"]
    assert load_candidate_features(path) == (
        CandidateFeature("retrieval_score", "numeric", "scores"),
        CandidateFeature("position", "categorical", "position", training_only=True, at_serving=0),
    )


def test_they_are_no_part_of_a_release(tmp_path: Path) -> None:
    """A decoder reads none of them: the schema that its release is checked by stays the same."""
    plain = load_schema(write(tmp_path, ""))
    assert load_schema(write(tmp_path, feature(name="row", kind="categorical"))) == plain
    assert load_candidate_features(write(tmp_path, "")) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[candidate_feature]\n", "candidate_feature must be an array of tables"),
        (feature(kind="numeric"), "[[candidate_feature]] number 1: name = None"),
        (feature(name="row", kind="numeric") * 2, "[[candidate_feature]] 'row': declared twice"),
        (feature(name="item_id", kind="categorical"), "'item_id': this name is built in"),
        (feature(name="row", kind="multi"), "kind = 'multi': must be one of categorical, numeric"),
        (feature(name="row", kind="categorical", max_values=3), "unknown field 'max_values'"),
        (feature(name="row", kind="categorical", column=""), "column = '': must be a column's name"),
        (feature(name="row", kind="categorical", boundaries=[1]), "boundaries are for kind = 'numeric'"),
        (feature(name="row", kind="categorical", training_only="yes"), "must be true or false"),
        (feature(name="row", kind="categorical", at_serving=1), "is sent with each request"),
        (
            feature(name="row", kind="categorical", training_only=True, at_serving=1.5),
            "at_serving = 1.5: must be an integer, a string or a boolean",
        ),
        (
            feature(name="row", kind="numeric", training_only=True, at_serving="top"),
            "at_serving = 'top': must be a number",
        ),
        (
            feature(name="row", kind="numeric", training_only=True, at_serving=1e39),
            "at_serving = 1e+39: must be a number",
        ),
        (feature(name="row", kind="numeric", column="label_watch"), "holds the label of task 'watch'"),
    ],
)
def test_a_wrong_declaration_is_named_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as raised:
        load_candidate_features(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_there_are_none_where_requests_are_made_of_events(tmp_path: Path) -> None:
    path = write(
        tmp_path, feature(name="row", kind="numeric"), '[[task]]\nname = "watch"\nkind = "interaction"\n'
    )
    with pytest.raises(DataError, match=r"'row': is a column of requests\.parquet"):
        load_candidate_features(path)


def test_values_are_read_from_lists(tmp_path: Path) -> None:
    table = table_of(
        tmp_path,
        {
            "scores": [[0.25, None], [], [3.0]],
            "rows": [["a", None], [], ["b"]],
            "positions": [[0, 1], [], [2]],
        },
    )
    lengths = np.array([2, 0, 1])
    scores = candidate_values(table, SCORE, lengths)
    assert scores.dtype == np.float32
    assert scores.tolist() == [0.25, NO_NUMBER, 3.0]
    rows = candidate_values(table, ROW, lengths)
    assert rows.dtype == np.int64
    assert rows.tolist() == [hash_string("a"), NO_VALUE, hash_string("b")]
    assert candidate_values(table, POSITION, lengths).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], "column 'scores': row 1 holds 2 values for 1 candidates"),
        ([[1.0, 2.0], None], "column 'scores': has 1 nulls, the first in row 1"),
        ([1.0, 2.0], "column 'scores': is Float64; it must hold a list in every row"),
        ([["a", "b"], ["c"]], "column 'scores': is String; a numeric column holds numbers"),
        ([[1.0, 2.0], [float("inf")]], "column 'scores': has 1 infinite values"),
    ],
)
def test_wrong_lists_are_named_in_one_line(tmp_path: Path, column: list, said: str) -> None:
    table = table_of(tmp_path, {"scores": column})
    with pytest.raises(DataError, match=r"requests\.parquet") as raised:
        candidate_values(table, SCORE, np.array([2, 1]))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.lists(st.one_of(st.none(), st.floats(-100, 100, width=32)), min_size=1, max_size=30))
def test_what_training_tells_of_a_number(values: list[float | None]) -> None:
    raw = np.array([NO_NUMBER if value is None else value for value in values], dtype=np.float32)
    known = known_features((SCORE,), {"retrieval": raw})
    columns = known.look_up({"retrieval": raw}, len(raw))
    there = raw != NO_NUMBER
    assert (columns.sparse[:, 0] == np.where(there, FIRST_KNOWN + (raw >= 0.5), -1)).all()
    assert (columns.dense[~there, 0] == 0).all()
    if there.any():
        assert abs(columns.dense[there, 0].mean()) < 1e-3
    assert CandidateFeatures.from_json(json.loads(json.dumps(known.to_json()))).to_json() == known.to_json()


def test_what_training_tells_of_categories() -> None:
    size_two = CandidateFeature("row", "categorical", "rows", vocabulary_size=2)
    raw = np.array([7, 7, 5, 5, 9, NO_VALUE])
    found = known_features((size_two,), {"row": raw}).look_up({"row": raw}, len(raw)).sparse[:, 0]
    assert found.tolist() == [3, 3, 2, 2, OUT_OF_VOCABULARY, -1]


def test_values_that_training_lacks_are_named() -> None:
    with pytest.raises(ValueError, match="candidate feature 'row' is missing"):
        known_features((ROW,), {"retrieval": np.zeros(1)})


def test_training_reads_a_position_and_serving_does_not_ask_for_it() -> None:
    known = known_features((POSITION,), {"position": np.arange(4)})
    trained = known.look_up({"position": np.array([3, 0, 2])}, 3)
    assert trained.sparse[:, 0].tolist() == [FIRST_KNOWN + 3, FIRST_KNOWN, FIRST_KNOWN + 2]
    assert known.look_up({}, 3).sparse[:, 0].tolist() == [FIRST_KNOWN] * 3, "position 0, as declared"
    assert known.asked_for == ()


def test_serving_is_not_fixed_at_what_training_never_saw() -> None:
    with pytest.raises(DataError, match="'position': at_serving = 0: is not among the values"):
        known_features((POSITION,), {"position": np.arange(1, 4)})
    no_value = CandidateFeature("position", "categorical", "positions", training_only=True)
    assert (
        known_features((no_value,), {"position": np.arange(1, 4)}).look_up({}, 2).sparse.tolist()
        == [[-1]] * 2
    )


def test_a_request_that_says_nothing_has_no_values() -> None:
    known = known_features(
        (SCORE, ROW, POSITION), {"retrieval": np.ones(2), "row": np.arange(2), "position": np.arange(2)}
    )
    columns = known.look_up(known.no_values(3), 3)
    assert columns.sparse.tolist() == [[-1, -1, FIRST_KNOWN]] * 3
    assert (columns.dense == 0).all()
    assert set(known.no_values(3)) == {"retrieval", "row"}


@pytest.fixture
def world(synthetic_folder: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic world whose schema may be changed."""
    return Path(shutil.copytree(synthetic_folder, tmp_path / "world"))


def test_rows_of_every_part_have_the_positions_that_labels_are_of(
    world: Path, release_folder: Path, tmp_path: Path
) -> None:
    make_rows(RowsConfig(world, release_folder, tmp_path / "rows"))
    folder = RowFolder.open(tmp_path / "rows")
    assert [known.feature for known in folder.features.config.candidates.known] == [POSITION]
    for part in PARTS:
        rows = folder.read_all(part)
        place = np.arange(len(rows.item_rows)) - np.repeat(
            rows.candidate_offsets[:-1], np.diff(rows.candidate_offsets)
        )
        assert (rows.candidates.sparse[:, 0] == FIRST_KNOWN + place).all(), (part, "in the order of the list")


def test_rows_of_another_declaration_are_not_taken_for_these(
    world: Path, release_folder: Path, tmp_path: Path
) -> None:
    config = RowsConfig(world, release_folder, tmp_path / "rows")
    make_rows(config)
    schema = world / "schema.toml"
    schema.write_text(
        schema.read_text(encoding="utf-8").replace("at_serving = 0", "at_serving = 1"), encoding="utf-8"
    )
    with pytest.raises(DataError, match="made with candidate_features = "):
        make_rows(config)
