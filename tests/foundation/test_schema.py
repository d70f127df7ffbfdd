"""schema.toml: what it says is what is read, and what is wrong is named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.errors import DataError
from foundation.schema import Columns, Facet, Feature, Schema, load_schema

GOOD = """
name = "shop"
[columns]
profile_id = "buyer"
item_id = "sku"
timestamp = "at"
title = "label"
[[facet]]
name = "page"
role = "where"
kind = "categorical"
column = "page_name"
vocabulary_size = 50
[[facet]]
name = "price"
role = "what"
kind = "numeric"
boundaries = [1, 2.5]
[[item_feature]]
name = "tags"
kind = "multi"
max_values = 3
[[profile_feature]]
name = "city"
kind = "categorical"
[[task]]
name = "buy"
kind = "anything the ranker knows"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "schema.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_every_field(tmp_path: Path) -> None:
    assert load_schema(write(tmp_path, GOOD)) == Schema(
        name="shop",
        columns=Columns("buyer", "sku", "at", "label"),
        facets=(
            Facet("page", "categorical", "page_name", vocabulary_size=50, role="where"),
            Facet("price", "numeric", "price", boundaries=(1.0, 2.5), role="what"),
        ),
        item_features=(Feature("tags", "multi", "tags", max_values=3),),
        profile_features=(Feature("city", "categorical", "city"),),
    )


def test_reads_time_merging_durations_and_the_catalogue_s_columns(tmp_path: Path) -> None:
    text = GOOD.replace('title = "label"', 'launched_at = "since"\ncontent_embedding = "vector"')
    text = text.replace('kind = "numeric"\n', 'kind = "duration"\n')
    tables = '[time]\nchannels = ["gap", "hour_of_week"]\n[merge]\nadjacent = true\n'
    schema = load_schema(write(tmp_path, text + tables))
    assert schema.columns == Columns("buyer", "sku", "at", None, "since", "vector")
    assert schema.time_channels == ("hour_of_week", "gap")
    assert schema.merge_adjacent
    assert [(facet.name, facet.kind, facet.role) for facet in schema.facets] == [
        ("page", "categorical", "where"),
        ("price", "duration", "what"),
        ("num_actions", "numeric", "what"),
    ]
    assert [facet.name for facet in schema.declared_facets] == ["page", "price"]
    assert [facet.is_number for facet in schema.facets] == [False, True, True]
    assert Schema.from_json(schema.to_json()) == schema
    plain = load_schema(write(tmp_path, text))
    assert plain.time_channels == ("hour_of_week", "date", "gap")
    assert not plain.merge_adjacent
    assert plain.hash() != schema.hash()


def test_facets_of_keeps_the_declared_order(tmp_path: Path) -> None:
    schema = load_schema(write(tmp_path, GOOD))
    assert [facet.name for facet in schema.facets_of("where", "what")] == ["page", "price"]
    assert [facet.name for facet in schema.facets_of("when")] == []


def test_json_keeps_everything_and_the_hash_sees_every_change(tmp_path: Path) -> None:
    schema = load_schema(write(tmp_path, GOOD))
    assert Schema.from_json(schema.to_json()) == schema
    other = load_schema(write(tmp_path, GOOD.replace("[1, 2.5]", "[1, 2.6]")))
    assert len({schema.hash(), other.hash(), Schema.from_json(schema.to_json()).hash()}) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "categorical"', 'kind = "category"', "[[facet]] 'page': kind = 'category': must be one of"),
        (
            'role = "where"',
            'role = "who"',
            "[[facet]] 'page': role = 'who': must be one of when, where, what",
        ),
        ('role = "where"\n', "", "[[facet]] 'page': role = None"),
        (
            "vocabulary_size = 50",
            "vocabulary_size = 0",
            "vocabulary_size = 0: must be a whole number above 0",
        ),
        ("vocabulary_size = 50", "vocab_size = 50", "unknown field 'vocab_size'; the fields are name, kind"),
        ("vocabulary_size = 50", "boundaries = [1]", "boundaries are for kind = 'numeric' or 'duration'"),
        ("vocabulary_size = 50", "max_values = 2", "max_values is for kind = 'multi'"),
        ("[1, 2.5]", "[2.5, 1]", "boundaries = [2.5, 1]: must be a list of ascending numbers"),
        ("[1, 2.5]", "[1]\nvocabulary_size = 4", "give boundaries or vocabulary_size"),
        (
            "[1, 2.5]",
            "[16777216, 16777217]",
            "[[facet]] 'price': boundaries = [16777216, 16777217]: are equal",
        ),
        ("[1, 2.5]", "[1, 1e39]", "boundaries = [1, 1e+39]: are equal or infinite as float32 numbers"),
        ("[1, 2.5]", "[1, inf]", "boundaries = [1, inf]: are equal or infinite as float32 numbers"),
        ("[1, 2.5]", f"[1, 1{'0' * 400}]", "are equal or infinite as float32 numbers"),
        ('name = "page"', 'name = "gap"', "this name is built in"),
        ('name = "tags"', 'name = "item_id"', "[[item_feature]] 'item_id': this name is built in"),
        (
            'name = "city"',
            'name = "hour_of_week"',
            "[[profile_feature]] 'hour_of_week': this name is built in",
        ),
        ('name = "page"', 'name = "the page"', "number 1: name = 'the page'"),
        ('name = "price"', 'name = "page"', "[[facet]] 'page': declared twice"),
        ('item_id = "sku"', "item_id = 3", "[columns]: item_id = 3"),
        ('item_id = "sku"', 'item = "sku"', "[columns]: unknown field 'item'"),
        ("[[profile_feature]]", "[[profil_feature]]", "unknown field 'profil_feature'"),
        ("[[profile_feature]]", "[profile_feature]", "write [[profile_feature]]"),
        ("[columns]", "[columns", "not valid TOML"),
        (
            "[columns]",
            '[time]\nchannels = ["hour"]\n[columns]',
            "[time]: channels = ['hour']: must be a list of any of hour_of_week, date, gap",
        ),
        ("[columns]", "[time]\nchannel = []\n[columns]", "[time]: unknown field 'channel'"),
        ("[columns]", "[merge]\nadjacent = 1\n[columns]", "[merge]: adjacent = 1: must be true or false"),
        ('kind = "multi"', 'kind = "duration"', "[[item_feature]] 'tags': kind = 'duration': must be one of"),
        (
            'kind = "categorical"',
            'kind = "duration"',
            "vocabulary_size is not for kind = 'duration'; give boundaries, or nothing",
        ),
        ('name = "page"', 'name = "num_actions"', "this name is built in"),
        ('name = "price"', 'name = "item_age"', "this name is built in"),
    ],
)
def test_says_in_one_line_what_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(DataError) as raised:
        load_schema(path)
    message = str(raised.value)
    assert said in message
    assert message.startswith(str(path))
    assert "\n" not in message


def test_a_folder_without_schema_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"schema\.toml: not found"):
        load_schema(tmp_path / "schema.toml")
