"""Who is held out, and which events may be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.dataset import load_dataset
from foundation.errors import DataError
from foundation.protocol import PROTOCOLS, ProtocolName
from foundation.split import (
    TEST,
    TRAIN,
    VALIDATION,
    Split,
    draw_split,
    profile_roles,
    read_split,
    training_cut,
    training_lengths,
    training_mask,
    write_split,
)


@dataclass
class Histories:
    """Profiles with the given numbers of events, as `training_mask` needs them."""

    profile_ids: np.ndarray
    offsets: np.ndarray
    split: Split
    protocol: ProtocolName = "profiles"


def test_shares_are_ten_and_five_percent_and_disjoint() -> None:
    split = draw_split(np.arange(6040), seed=1)
    assert (len(split.test), len(split.validation)) == (604, 302)
    assert not np.isin(split.test, split.validation).any()


def test_depends_on_the_seed_and_not_on_the_order_of_profiles() -> None:
    ids = np.arange(100) * 7
    assert draw_split(ids, seed=1).hash() == draw_split(ids[::-1], seed=1).hash()
    assert draw_split(ids, seed=1).hash() != draw_split(ids, seed=2).hash()


@given(st.integers(3, 400))
def test_every_part_has_a_profile(num_profiles: int) -> None:
    roles = draw_split(np.arange(num_profiles)).roles(np.arange(num_profiles))
    assert {TRAIN, VALIDATION, TEST} == set(roles.tolist())


def test_two_profiles_are_too_few() -> None:
    with pytest.raises(DataError, match="holds 2 profiles; a split needs 3"):
        draw_split(np.array([4, 9]))


def test_comes_back_from_its_file_and_is_written_once(tmp_path: Path) -> None:
    split = draw_split(np.array([-(2**63) + 1, 2**63 - 1, 5, 6]))
    write_split(tmp_path / "split.json", split)
    assert read_split(tmp_path / "split.json").hash() == split.hash()
    with pytest.raises(FileExistsError):
        write_split(tmp_path / "split.json", split)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"seed": 0, "test": [1]}', '{"seed": 0, "test": ["a"], "validation": []}']
)
def test_a_file_that_is_no_split_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match=r"split\.json: must hold seed, test and validation"):
        read_split(tmp_path / "split.json")


def test_the_cut_is_exact() -> None:
    assert training_cut(np.array([0, 1, 4, 5, 9, 10, 1_000_000_007])).tolist() == [
        0,
        0,
        3,
        4,
        7,
        8,
        800_000_005,
    ]


@given(st.lists(st.integers(0, 30), min_size=3, max_size=40), st.integers(0, 5))
def test_training_events_are_the_first_four_fifths_of_training_profiles(
    lengths: list[int], seed: int
) -> None:
    profile_ids = np.arange(len(lengths)) * 3 - 50
    histories = Histories(
        profile_ids, np.concatenate([[0], np.cumsum(lengths)]), draw_split(profile_ids, seed)
    )
    roles = profile_roles(histories)
    expected = [
        role == TRAIN and event < 4 * length // 5
        for role, length in zip(roles, lengths, strict=True)
        for event in range(length)
    ]
    assert training_mask(histories).tolist() == expected


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [("last", [1, 1, 2, 3, 9]), ("last-two", [1, 1, 1, 2, 8])],
)
def test_last_events_are_held_out_of_every_profile_that_has_enough(
    protocol: ProtocolName, expected: list[int]
) -> None:
    """Of 1, 2, 3, 4 and 10 events: one alone has no test, two have no validation event."""
    lengths = np.array([1, 2, 3, 4, 10])
    ids = np.arange(5)
    histories = Histories(ids, np.concatenate([[0], np.cumsum(lengths)]), draw_split(ids), protocol)
    assert training_lengths(histories).tolist() == expected
    assert (profile_roles(histories) == TRAIN).all()
    expected_mask = [
        event < kept for length, kept in zip(lengths, expected, strict=True) for event in range(length)
    ]
    assert training_mask(histories).tolist() == expected_mask


def test_an_unknown_protocol_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="protocol is 'final'; it must be one of profiles, last, last-two"):
        load_dataset(tmp_path, "final")  # pyright: ignore[reportArgumentType]
    assert PROTOCOLS == ("profiles", "last", "last-two")
