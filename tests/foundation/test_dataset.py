"""The data contract: one's own Parquet through the same door, and bad data named in one line."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from foundation.dataset import Dataset, load_dataset
from foundation.errors import DataError, run_command
from foundation.vocabulary import NO_NUMBER, NO_VALUE, build_vocabularies, hash_string, hash_strings

OWN_SCHEMA = """
[columns]
profile_id = "buyer"
item_id = "sku"
timestamp = "at"
[[facet]]
name = "page"
role = "where"
kind = "categorical"
column = "page_name"
[[facet]]
name = "price"
role = "what"
kind = "numeric"
[[facet]]
name = "tags"
role = "what"
kind = "multi"
max_values = 2
"""
ITEM_SCHEMA = '[[item_feature]]\nname = "colour"\nkind = "categorical"\n'
PROFILE_SCHEMA = '[[profile_feature]]\nname = "income"\nkind = "numeric"\n'

EVENTS = pl.DataFrame(
    {
        "buyer": ["zoe", "zoe", "zoe", "ann", "ann", "bob", "cid", "cid"],
        "sku": ["pen", "ink", "cup", "cup", "pen", "ink", "pen", "pen"],
        "at": [100, 200, 200, 50, 60, 10, 5, 5],
        "page_name": ["shop", None, "shop", "mail", "shop", "mail", "shop", "mail"],
        "price": [1.5, None, float("nan"), 2.0, 3.0, 4.0, 5.0, 6.0],
        "tags": [["a"], [], None, ["a", "b", "c"], ["b", None], ["c"], ["a"], ["a"]],
    }
)
ITEMS = pl.DataFrame({"sku": ["pen", "ink", "cup"], "colour": ["red", "blue", None]})


def write(
    folder: Path, events: pl.DataFrame = EVENTS, schema: str = OWN_SCHEMA, **tables: pl.DataFrame
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "schema.toml").write_text(schema, encoding="utf-8")
    for name, table in {"events": events, **tables}.items():
        table.write_parquet(folder / f"{name}.parquet")
    return folder


def test_own_logs_with_other_names_string_ids_and_nothing_but_events(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path / "own"))
    events = dataset.events
    assert events.profile_id.tolist() == hash_strings(["zoe", "ann", "bob", "cid"]).tolist()
    assert events.offsets.tolist() == [0, 3, 5, 6, 8]
    assert events.item_id.tolist() == hash_strings(EVENTS["sku"].to_list()).tolist()
    assert events.timestamp.tolist() == EVENTS["at"].to_list()
    assert dataset.catalogue.titles == ["pen", "ink", "cup"]
    assert dataset.catalogue.item_id.tolist() == hash_strings(["pen", "ink", "cup"]).tolist()
    assert dataset.profiles.features == {}
    assert (dataset.num_profiles, dataset.num_events, dataset.num_items) == (4, 8, 3)
    assert build_vocabularies(dataset).items.lookup(events.item_id).tolist() == [2, 3, 4, 4, 2, 3, 2, 2]


def test_raw_values_of_every_kind(tmp_path: Path) -> None:
    facets = load_dataset(write(tmp_path / "own")).events.facets
    a, b, c = hash_strings(["a", "b", "c"])
    assert facets["page"][:3].tolist() == [hash_string("shop"), NO_VALUE, hash_string("shop")]
    np.testing.assert_array_equal(
        facets["price"][:4], np.array([1.5, NO_NUMBER, NO_NUMBER, 2.0], dtype=np.float32)
    )
    padded = [[a, NO_VALUE], [NO_VALUE] * 2, [NO_VALUE] * 2, [a, b], [b, NO_VALUE], [c, NO_VALUE]]
    assert facets["tags"][:6].tolist() == padded
    assert all(values.flags.writeable for values in facets.values())


def test_categories_datetimes_and_booleans_mean_the_same(tmp_path: Path) -> None:
    plain = load_dataset(write(tmp_path / "plain"))
    events = EVENTS.with_columns(
        pl.col("buyer").cast(pl.Categorical),
        pl.col("page_name").cast(pl.Enum(["mail", "shop"])),
        at=pl.Series([datetime.fromtimestamp(at) for at in EVENTS["at"]]).cast(pl.Datetime("ms")),
        price=pl.Series([True, False] * 4),
    )
    offset = int(
        datetime.fromtimestamp(0).timestamp()
        - (datetime.fromtimestamp(0) - datetime(1970, 1, 1)).total_seconds()
    )
    typed = load_dataset(write(tmp_path / "typed", events))
    assert typed.events.profile_id.tolist() == plain.events.profile_id.tolist()
    assert typed.events.facets["page"].tolist() == plain.events.facets["page"].tolist()
    assert (typed.events.timestamp + offset).tolist() == plain.events.timestamp.tolist()
    assert typed.events.facets["price"].tolist() == [1.0, 0.0] * 4


def test_profiles_are_aligned_and_missing_ones_have_no_value(tmp_path: Path) -> None:
    profiles = pl.DataFrame({"buyer": ["bob", "eve", "zoe"], "income": [10, 20, 30]})
    dataset = load_dataset(write(tmp_path / "own", schema=OWN_SCHEMA + PROFILE_SCHEMA, profiles=profiles))
    assert dataset.profiles.profile_id.tolist() == dataset.events.profile_id.tolist()
    missing = float(NO_NUMBER)
    assert dataset.profiles.features["income"].tolist() == [30.0, missing, 10.0, missing]


def test_events_of_unknown_items_are_kept_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    schema = OWN_SCHEMA + ITEM_SCHEMA
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(
            write(tmp_path / "own", schema=schema, items=ITEMS.filter(pl.col("sku") != "pen"))
        )
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/own/items.parquet: 4 events of 1 items that are not in column 'sku' count as "
        "out of vocabulary"
    ]
    assert build_vocabularies(dataset).items.lookup(dataset.events.item_id).tolist() == [
        0,
        2,
        3,
        3,
        0,
        2,
        0,
        0,
    ]


def test_a_title_column_names_items(tmp_path: Path) -> None:
    schema = OWN_SCHEMA.replace('timestamp = "at"', 'timestamp = "at"\ntitle = "label"')
    items = ITEMS.with_columns(label=pl.Series(["Pen", None, "Cup"]))
    assert load_dataset(write(tmp_path / "own", schema=schema, items=items)).catalogue.titles == [
        "Pen",
        "ink",
        "Cup",
    ]


def test_the_split_is_drawn_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "own")
    first = load_dataset(folder).split
    written = (folder / "split.json").read_bytes()
    (folder / "split.json").write_bytes(written + b"\n")
    assert load_dataset(folder).split.hash() == first.hash()
    assert (folder / "split.json").read_bytes() == written + b"\n"


def swapped(table: pl.DataFrame, first: int, second: int) -> pl.DataFrame:
    order = np.arange(len(table))
    order[[first, second]] = second, first
    return table[order]


def with_null(column: str) -> pl.DataFrame:
    return EVENTS.with_columns(
        pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise(pl.col(column)).alias(column)
    )


BAD_EVENTS = {
    "missing id column": (EVENTS.drop("sku"), "no column 'sku'"),
    "schema names an absent column": (
        EVENTS.drop("page_name"),
        "no column 'page_name', which schema.toml asks for",
    ),
    "time runs backwards": (swapped(EVENTS, 0, 1), "column 'at': unsorted: row 1"),
    "profile comes back": (swapped(EVENTS, 4, 6), "column 'buyer': unsorted: row 6"),
    "duplicate": (pl.concat([EVENTS[:2], EVENTS[1:]]), "column 'sku': duplicate events: 2 rows"),
    "null profile": (with_null("buyer"), "column 'buyer': has 1 nulls, the first in row 3"),
    "null item": (with_null("sku"), "column 'sku': has 1 nulls, the first in row 3"),
    "null time": (with_null("at"), "column 'at': has 1 nulls, the first in row 3"),
    "fractional time": (
        EVENTS.with_columns(pl.col("at").cast(pl.Float64)),
        "column 'at': is Float64; timestamps",
    ),
    "milliseconds": (
        EVENTS.with_columns(pl.col("at") + 10**12),
        "column 'at': holds 1000000000200; timestamps",
    ),
    "fractional id": (EVENTS.with_columns(sku=pl.lit(1.5)), "column 'sku': is Float64; ids are"),
    "id of 64 unsigned bits": (
        EVENTS.with_columns(sku=pl.lit(2**63, pl.UInt64)),
        "column 'sku': a value doesn't fit",
    ),
    "text for a number": (
        EVENTS.with_columns(price=pl.lit("x")),
        "column 'price': is String; a numeric column",
    ),
    "number for a category": (
        EVENTS.with_columns(page_name=pl.lit(1.5)),
        "column 'page_name': is Float64; a categ",
    ),
    "text for a list": (
        EVENTS.with_columns(tags=pl.lit("a")),
        "column 'tags': is String; it must hold a list",
    ),
    "lists of numbers": (
        EVENTS.with_columns(tags=pl.lit([1.5])),
        "column 'tags': is Float64; its values are",
    ),
    "no events": (EVENTS[:0], "column 'buyer': there are no events"),
    "two profiles": (EVENTS[:5], "holds 2 profiles; a split needs 3"),
}


@pytest.mark.parametrize("case", BAD_EVENTS)
def test_bad_events_are_one_line_with_file_and_column(tmp_path: Path, case: str) -> None:
    events, said = BAD_EVENTS[case]
    with pytest.raises(DataError) as raised:
        load_dataset(write(tmp_path / "own", events))
    assert said in str(raised.value)
    assert "events.parquet: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_same_item_at_the_same_second_with_another_facet_is_no_duplicate(tmp_path: Path) -> None:
    # "cid" bought a pen twice in one second, from two pages.
    assert load_dataset(write(tmp_path / "own")).num_events == len(EVENTS)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, "items.parquet: not found"),
        ({"items": ITEMS.drop("colour")}, "items.parquet: no column 'colour', which schema.toml asks for"),
        ({"items": pl.concat([ITEMS, ITEMS[1:2]])}, "items.parquet: column 'sku': duplicate: row 3"),
        (
            {"items": ITEMS.with_columns(sku=pl.int_range(3))},
            "items.parquet: column 'sku': holds none of the events'",
        ),
    ],
)
def test_bad_items(tmp_path: Path, tables: dict[str, pl.DataFrame], said: str) -> None:
    with pytest.raises(DataError, match=said.replace(".", r"\.")):
        load_dataset(write(tmp_path / "own", schema=OWN_SCHEMA + ITEM_SCHEMA, **tables))


def test_bad_profiles(tmp_path: Path) -> None:
    profiles = pl.DataFrame({"buyer": ["ann", "ann"], "income": [1, 2]})
    folder = write(tmp_path / "own", schema=OWN_SCHEMA + PROFILE_SCHEMA, profiles=profiles)
    with pytest.raises(DataError, match=r"profiles\.parquet: column 'buyer': duplicate: row 1"):
        load_dataset(folder)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, kept: float) -> None:
    path = write(tmp_path / "own") / "events.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(DataError, match=r"events\.parquet: not a readable Parquet file") as raised:
        load_dataset(tmp_path / "own")
    assert "\n" not in str(raised.value)


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "own") / "events.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:200] = b"\xff" * 196
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"events\.parquet: not a readable Parquet file"):
        load_dataset(tmp_path / "own")


def test_a_split_of_other_data_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "own")
    (folder / "split.json").write_text('{"seed": 0, "test": [1], "validation": [2]}')
    with pytest.raises(DataError, match=r"split\.json: test: none of these profiles is in events\.parquet"):
        load_dataset(folder)


def test_a_command_says_it_in_one_line_and_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> Dataset:
        return load_dataset(tmp_path)

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    assert capsys.readouterr() == (
        "",
        f"error: {tmp_path}/schema.toml: not found; a dataset folder needs a schema.toml\n",
    )
