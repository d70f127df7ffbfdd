"""What training hides of candidates: how often, of which ages, and what a ranker then makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from foundation.raw_values import NO_VALUE
from foundation.vocabulary import OUT_OF_VOCABULARY
from ranker.arches.sparse import table_name
from ranker.features.inputs import CandidateMarks
from ranker.features.item_features import ID_COLUMN, ITEM_ID, POPULARITY_COLUMN
from ranker.model import Ranker, RankerInputs
from ranker.training.augmentation import AugmentationConfig, augment, join_marks
from ranker.training.losses import LossConfig, RankerWithLoss
from ranker.training.targets import targets

NOTHING = AugmentationConfig(0.0, 0.0, 0.0, 0.0)
DAY_S = 86_400
PLACE = 3  # of the candidate that is looked at: an item that occurs once, and in no history


@pytest.fixture
def rows(make_assembly, make_inputs):
    return make_inputs(make_assembly("decoder").features)[1]


def launched(rows, days: float) -> np.ndarray:
    """Launches of all items, so many days before the first request; all requests moved to its time."""
    rows.histories.request.timestamp[:] = rows.histories.request.timestamp[0]
    when = int(rows.histories.request.timestamp[0] - days * DAY_S)
    return np.full(int(rows.item_rows.max()) + 1, when)


@pytest.mark.parametrize(
    ("days", "share"), [(-1, 0.7), (0, 0.7), (6.99, 0.7), (7, 0.5), (27.99, 0.5), (28, 0.0), (900, 0.0)]
)
def test_the_younger_a_title_the_oftener_the_decoder_is_silent_about_it(rows, days, share) -> None:
    _, marks = augment(rows, AugmentationConfig(), launched(rows, days), np.random.default_rng(0))
    assert marks.without_decoder.float().mean().item() == pytest.approx(share, abs=0.05)


def test_titles_whose_launch_is_unknown_keep_the_decoder(rows) -> None:
    launched_at = launched(rows, 1)
    launched_at[rows.item_rows[0]] = NO_VALUE
    _, marks = augment(rows, AugmentationConfig(), launched_at, np.random.default_rng(0))
    known = torch.from_numpy(rows.item_rows != rows.item_rows[0])
    assert not marks.without_decoder[~known].any()
    assert marks.without_decoder[known].any()
    _, marks = augment(rows, AugmentationConfig(), None, np.random.default_rng(0))
    assert not marks.without_decoder.any()


def test_shares_of_candidates_are_hidden_and_nothing_else_changes(rows) -> None:
    config = AugmentationConfig(hidden_candidates=0.2, unseen_candidates=0.3)
    found, marks = augment(rows, config, None, np.random.default_rng(0))
    hidden = found.item_rows != rows.item_rows
    assert hidden.mean() == pytest.approx(0.2, abs=0.05)
    assert (found.item_rows[hidden] == OUT_OF_VOCABULARY).all()
    assert marks.never_seen.float().mean().item() == pytest.approx(0.3 * 0.8, abs=0.05)
    assert not marks.never_seen[torch.from_numpy(found.item_rows == OUT_OF_VOCABULARY)].any()
    assert found.labels is rows.labels
    assert found.candidate_offsets is rows.candidate_offsets
    again, same_marks = augment(rows, config, None, np.random.default_rng(0))
    assert np.array_equal(again.item_rows, found.item_rows)
    assert torch.equal(same_marks.never_seen, marks.never_seen)


def test_nothing_is_hidden_without_a_share_and_marks_join_in_order(rows) -> None:
    found, marks = augment(rows, NOTHING, launched(rows, 1), np.random.default_rng(0))
    assert np.array_equal(found.item_rows, rows.item_rows)
    assert not marks.never_seen.any()
    assert not marks.without_decoder.any()
    some = CandidateMarks(torch.tensor([True]), torch.tensor([False]))
    joined = join_marks([some, CandidateMarks(*(each[:2] for each in marks))])
    assert joined.never_seen.tolist() == [True, False, False]
    assert joined.without_decoder.tolist() == [False] * 3


@pytest.mark.parametrize("name", ["hidden_candidates", "unseen_candidates", "dropped_if_fresh"])
def test_shares_out_of_range_are_named(name) -> None:
    with pytest.raises(ValueError, match=rf"augmentation\.{name} is 1\.0; it must be in \[0, 1\)"):
        replace(NOTHING, **{name: 1.0})


@pytest.fixture(params=["vector", "crossing", "pooled"])
def model_and_batch(request, make_assembly, make_batch) -> tuple[Ranker, RankerInputs]:
    """A ranker and a batch; what is looked at is not in any history."""
    options = {"crossing_layers": 1} if request.param == "crossing" else {}
    assembly = make_assembly("pooled" if request.param == "pooled" else "decoder", **options)
    with torch.no_grad():
        for parameter in assembly.model.parameters():
            parameter.mul_(2)
    batch = make_batch(assembly)
    item_rows = batch.candidates.item_rows
    alone = [
        row for row in range(2, 150) if row not in batch.profile.item_ids and row not in item_rows.tolist()
    ]
    item_rows[PLACE] = alone[0]
    return assembly.model, batch


def logits(model: Ranker, batch: RankerInputs, **marked: bool) -> torch.Tensor:
    """`[modes, C, N]`, the candidate at PLACE marked."""
    marks = CandidateMarks(
        *(torch.zeros(len(batch.candidates.item_rows), dtype=torch.bool) for _ in range(2))
    )
    for name in marked:
        getattr(marks, name)[PLACE] = True
    both = model.both_logits(batch._replace(marks=marks))
    return torch.stack([each for each in both if each is not None])


@torch.no_grad()
def test_marks_that_mark_nothing_change_nothing_and_others_only_their_own(model_and_batch) -> None:
    model, batch = model_and_batch
    plain = torch.stack([each for each in model.both_logits(batch) if each is not None])
    torch.testing.assert_close(logits(model, batch), plain, rtol=1e-6, atol=1e-6)
    others = torch.arange(plain.shape[1]) != PLACE
    for name in ("never_seen", "without_decoder"):
        found = logits(model, batch, **{name: True})
        torch.testing.assert_close(found[:, others], plain[:, others], rtol=1e-6, atol=1e-6)
        changes = name == "never_seen" or model.profile_tower.item_width > 0
        assert ((found[:, PLACE] - plain[:, PLACE]).abs().min() > 1e-5) == changes


@torch.no_grad()
def test_a_hidden_candidate_is_ranked_as_the_same_title_would_be_had_nobody_seen_it(model_and_batch) -> None:
    model, batch = model_and_batch
    row = int(batch.candidates.item_rows[PLACE])
    hidden = logits(model, batch, never_seen=True)
    tower = model.candidate_tower
    tower.item_dense[row, POPULARITY_COLUMN] = tower.item_dense[2:, POPULARITY_COLUMN].min()
    tower.sparse.bags.embedding_bags[table_name(tower.sparse.columns[ID_COLUMN])].weight[row] = 0
    assert tower.sparse.columns[ID_COLUMN].name == ITEM_ID
    if model.profile_tower.item_width:
        model.profile_tower.foundation.item_tower.counts[row] = 0
    torch.testing.assert_close(logits(model, batch), hidden, rtol=1e-5, atol=1e-5)
    assert (tower.item_sparse[row, 1:] >= 0).any(), "it has metadata"
    tower.item_sparse[row, 1:] = -1
    assert (logits(model, batch, never_seen=True) - hidden)[:, PLACE].abs().min() > 1e-5, "and they are kept"


@torch.no_grad()
def test_without_the_decoder_its_item_vector_says_nothing(model_and_batch) -> None:
    model, batch = model_and_batch
    if not model.profile_tower.item_width:
        return
    row = int(batch.candidates.item_rows[PLACE])
    dropped, plain = logits(model, batch, without_decoder=True), logits(model, batch)
    model.profile_tower.foundation.item_tower.id_embedding.weight[row] += 1
    assert torch.equal(logits(model, batch, without_decoder=True), dropped)
    assert (logits(model, batch) - plain)[:, PLACE].abs().min() > 1e-5


def test_all_of_a_ranker_learns_from_augmented_rows(make_assembly, make_inputs, rows) -> None:
    assembly = make_assembly("decoder", crossing_layers=1)
    inputs, rows = make_inputs(assembly.features)
    _, marks = augment(rows, AugmentationConfig(), launched(rows, 1), np.random.default_rng(0))
    assert 0 < marks.never_seen.sum() < len(marks.never_seen)
    model = RankerWithLoss(assembly.model, LossConfig(next_item_weight=0.0)).train()
    model(inputs._replace(marks=marks), targets(rows, 16)).sums[:4].sum().backward()
    silent = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
    assert silent == []
