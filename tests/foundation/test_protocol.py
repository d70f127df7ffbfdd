"""What each protocol holds out, from the events that are tested to the cut that a release records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from foundation.dataset import Dataset, load_dataset
from foundation.decoder import DecoderConfig
from foundation.leave_one_out import last_events, popularity_ranks
from foundation.manifest import training_cut_of, training_data_of
from foundation.model import FoundationConfig
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig, build_model
from foundation.protocol import PROTOCOLS, ProtocolName
from foundation.release import Release, ReleaseError, check_cut, check_dataset, load_release, save_release
from foundation.run_record import data_hash
from foundation.split import TEST, TRAIN, VALIDATION, training_mask
from foundation.tokenizer import Tokenizer
from foundation.training_batches import BatchConfig, training_histories
from foundation.vocabulary import FIRST_KNOWN, build_vocabularies
from foundation.window import WindowConfig


@pytest.fixture(scope="module")
def datasets(synthetic_folder) -> dict[ProtocolName, Dataset]:
    return {protocol: load_dataset(synthetic_folder, protocol) for protocol in PROTOCOLS}


def test_last_has_a_test_of_every_profile_and_no_validation(datasets, synthetic_ids):
    dataset = datasets["last"]
    tested = last_events(dataset, synthetic_ids, TEST)
    assert tested.last_row.tolist() == (dataset.offsets[1:] - 1).tolist()
    assert tested.first_row.tolist() == dataset.offsets[:-1].tolist()
    assert not len(last_events(dataset, synthetic_ids, VALIDATION).last_row)
    assert not len(last_events(dataset, synthetic_ids, TRAIN).last_row)


def test_last_two_tests_the_last_with_the_validation_event_in_its_history(datasets, synthetic_ids):
    dataset = datasets["last-two"]
    tested, chosen_on = (last_events(dataset, synthetic_ids, role) for role in (TEST, VALIDATION))
    assert tested.last_row.tolist() == (dataset.offsets[1:] - 1).tolist()
    assert (chosen_on.last_row + 1).tolist() == tested.last_row.tolist()
    assert chosen_on.first_row.tolist() == tested.first_row.tolist()
    trained = training_mask(dataset)
    assert not trained[tested.last_row].any()
    assert not trained[chosen_on.last_row].any()
    assert trained.sum() == dataset.num_events - 2 * dataset.num_profiles


def test_profiles_with_one_and_two_events_have_no_test_and_no_validation(datasets, synthetic_ids):
    """The first profile is cut down to one event, the second to two."""
    whole = datasets["last-two"]
    kept = np.ones(whole.num_events, dtype=bool)
    kept[whole.offsets[0] + 1 : whole.offsets[1]] = False
    kept[whole.offsets[1] + 2 : whole.offsets[2]] = False
    lengths = np.diff(whole.offsets)
    lengths[:2] = 1, 2
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = type(synthetic_ids)(*(part[kept] for part in synthetic_ids))
    cut = replace(whole, events=replace(whole.events, offsets=offsets))
    tested, chosen_on = (last_events(cut, ids, role) for role in (TEST, VALIDATION))
    assert tested.last_row.tolist() == (offsets[2:] - 1).tolist()
    assert chosen_on.last_row.tolist() == (offsets[3:] - 2).tolist()
    assert training_histories(cut).num_events[:3].tolist() == [1, 1, lengths[2] - 2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_histories_vocabularies_and_popularity_stop_at_the_same_events(datasets, synthetic_ids, protocol):
    dataset = datasets[protocol]
    rows = np.concatenate(
        [first + np.arange(n) for first, n in zip(*training_histories(dataset), strict=True)]
    )
    trained = np.flatnonzero(training_mask(dataset))
    assert np.array_equal(rows, trained)
    assert build_vocabularies(dataset).first_timestamp == dataset.events.timestamp[trained].min()
    assert training_data_of(dataset).num_events == len(trained)
    tested = last_events(dataset, synthetic_ids, TEST)
    counts = np.bincount(synthetic_ids.item[trained], minlength=dataset.num_items + FIRST_KNOWN)
    expected = []
    for first, last in zip(*tested, strict=True):
        target = int(synthetic_ids.item[last])
        shown = (set(range(FIRST_KNOWN, len(counts))) - set(synthetic_ids.item[first:last].tolist())) | {
            target
        }
        expected.append(sorted(shown, key=lambda row: (-counts[row], row)).index(target))
    assert popularity_ranks(dataset, synthetic_ids, tested, len(counts)).tolist() == expected


def test_the_protocol_is_in_the_cut_and_in_the_hash_of_the_data(datasets):
    cuts = [training_cut_of(datasets[protocol]) for protocol in PROTOCOLS]
    assert [cut.protocol for cut in cuts] == list(PROTOCOLS)
    num_profiles = datasets["last"].num_profiles
    assert [cut.num_held_out for cut in cuts[1:]] == [num_profiles, 2 * num_profiles]
    assert [cut.training_share for cut in cuts] == [0.8, 1.0, 1.0]
    assert len({cut.held_out_hash for cut in cuts}) == 3
    assert len({data_hash(dataset) for dataset in datasets.values()}) == 3
    events = datasets["last"].events
    other_item = events.item_id.copy()
    other_item[-1] = events.item_id[0]
    changed = replace(datasets["last"], events=replace(events, item_id=other_item))
    assert training_cut_of(changed).held_out_hash != cuts[1].held_out_hash


def _release(dataset: Dataset, folder) -> Release:
    tokenizer = Tokenizer(dataset.schema, build_vocabularies(dataset))
    config = FoundationConfig(DecoderConfig(width=16, num_layers=1), window=WindowConfig(20, 5))
    torch.manual_seed(0)
    save_release(folder, build_model(config, tokenizer, dataset), tokenizer, training_data_of(dataset), {})
    return load_release(folder)


def test_only_data_under_its_own_protocol_fit_a_release(datasets, tmp_path):
    release = _release(datasets["last"], tmp_path / "release")
    check_dataset(release, datasets["last"])
    check_cut(release, datasets["last"])
    for check in (check_cut, check_dataset):
        with pytest.raises(
            ReleaseError, match=r"cut\.protocol is 'last', .* pre-train with --protocol profiles"
        ):
            check(release, datasets["profiles"])
        with pytest.raises(ReleaseError, match="evaluate it under its own protocol"):
            check(release, datasets["last-two"])


def test_training_validates_on_the_event_before_the_last_where_there_is_one(synthetic_folder, tmp_path):
    def validation(protocol: ProtocolName) -> set[str]:
        config = PretrainConfig(
            synthetic_folder,
            tmp_path / protocol,
            protocol=protocol,
            epochs=1,
            model=FoundationConfig(DecoderConfig(width=16, num_layers=1), window=WindowConfig(20, 5)),
            batch=BatchConfig(300),
        )
        return {name for name in pretrain(config) if name.startswith("validation_")}

    assert {"validation_loss", "validation_ndcg@10", "validation_hr@10"} <= validation("last-two")
    assert validation("last") == set()
