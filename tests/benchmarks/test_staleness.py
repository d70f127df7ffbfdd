"""The staleness command: a stale request is that of the earlier event, both models rank the same, and what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from benchmarks import staleness
from benchmarks.stale_ranking import StaleRequests, masked_items, request_tokens, stale_ranks, stale_requests
from benchmarks.staleness import StalenessConfig, measure, pretrain_arguments, table
from foundation.dataset import Dataset, load_dataset
from foundation.decoder import DecoderConfig
from foundation.errors import DataError
from foundation.item_features import item_facts, num_item_feature_rows
from foundation.layout import layout
from foundation.leave_one_out import LastEvents, last_events, model_ranks
from foundation.manifest import training_data_of
from foundation.model import FoundationConfig, FoundationModel
from foundation.objectives.config import MultiTokenConfig
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig
from foundation.protocol import ProtocolName
from foundation.release import Release, load_release, save_release
from foundation.split import TEST, VALIDATION
from foundation.tokenizer import Tokenizer
from foundation.tokens import EventIds
from foundation.vocabulary import FIRST_KNOWN, START, build_vocabularies
from foundation.window import WindowConfig

WINDOW = WindowConfig(window=12, block=4)
SIZES = FoundationConfig(DecoderConfig(width=16, num_layers=2, num_heads=2), WINDOW)


@pytest.fixture(scope="module")
def dataset(synthetic_folder: Path) -> Dataset:
    return load_dataset(synthetic_folder, "last-two")


@pytest.fixture(scope="module")
def releases(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the folder of a release with random, large weights, so that a wrong input shows."""
    folder = tmp_path_factory.mktemp("releases")

    def give(seed: int, protocol: ProtocolName = "last-two") -> Path:
        release = folder / f"{protocol}-{seed}"
        if not release.exists():
            dataset = load_dataset(synthetic_folder, protocol)
            tokenizer = Tokenizer(dataset.schema, build_vocabularies(dataset))
            features = num_item_feature_rows(dataset.schema, tokenizer.vocabularies)
            torch.manual_seed(seed)
            model = FoundationModel(
                SIZES,
                tokenizer.num_facet_rows,
                features,
                item_facts(tokenizer, dataset.catalogue),
                tokenizer.age_column,
            )
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(3)
            save_release(release, model, tokenizer, training_data_of(dataset), {})
        return release

    return give


@pytest.fixture(scope="module")
def release(releases: Callable[..., Path]) -> Release:
    return load_release(releases(0))


@pytest.fixture(scope="module")
def events(dataset: Dataset, release: Release) -> EventIds:
    raw = dataset.events
    return release.tokenizer.event_ids(raw.item_id, raw.timestamp, raw.facets)


@pytest.fixture
def config(synthetic_folder: Path, releases: Callable[..., Path]) -> StalenessConfig:
    return StalenessConfig(data=synthetic_folder, releases=(releases(0), releases(1)), k=(0, 2, 5))


def never(*_: object) -> dict[str, Any]:
    raise AssertionError("nothing is to be trained")


def silent(_: object) -> None:
    pass


def test_the_request_is_k_events_before_the_target() -> None:
    """Histories of 2, 3 and 6 events, the targets at rows 1, 4 and 10."""
    tested = LastEvents(np.array([0, 2, 5]), np.array([1, 4, 10]))
    fresh, stale = stale_requests(tested, 0), stale_requests(tested, 1)
    assert fresh.request_row.tolist() == fresh.target_row.tolist() == [1, 4, 10]
    assert stale.first_row.tolist() == [2, 5]  # two events are too few: 1 + 2 are needed
    assert stale.request_row.tolist() == [3, 9] and stale.target_row.tolist() == [4, 10]
    assert stale_requests(tested, 4).request_row.tolist() == [6]
    assert not len(stale_requests(tested, 5).request_row)


def test_tokens_are_those_of_the_earlier_event(dataset: Dataset, release: Release, events: EventIds) -> None:
    """The same as when the data ended there; by hand, items are shifted by one and the window is the old one."""
    first, stop = dataset.offsets[:-1], dataset.offsets[1:]
    profile = int((stop - first).argmax())
    begin, last = int(first[profile]), int(stop[profile]) - 1
    request = last - 3
    requests = stale_requests(LastEvents(first[[profile]], np.array([last])), 3)
    found = request_tokens(WINDOW, release.tokenizer, events, requests)
    beyond = request - begin - 12
    start = begin + max(0, -(-beyond // 4) * 4)
    assert beyond > 0 and found.span.rows.tolist() == list(range(start, request + 1))
    assert found.item_ids.tolist() == [START, *events.item[start:request]]
    raw, until = dataset.events, slice(begin, request + 1)
    facets = {name: values[until] for name, values in raw.facets.items()}
    alone = release.tokenizer.event_ids(raw.item_id[until], raw.timestamp[until], facets)
    kept = np.arange(start - begin, request - begin + 1)
    facet_ids, item_ids = release.tokenizer.assemble(alone, kept, np.where(kept > kept[0], kept - 1, -1))
    np.testing.assert_array_equal(found.facet_ids, facet_ids)
    np.testing.assert_array_equal(found.item_ids, item_ids)


def test_only_the_known_history_is_masked(events: EventIds) -> None:
    requests = StaleRequests(np.array([0, 20]), np.array([2, 23]), np.array([4, 25]))
    profiles, rows = masked_items(events, requests, "then")
    assert profiles.tolist() == [0, 0, 1, 1, 1]
    assert rows.tolist() == events.item[[0, 1, 20, 21, 22]].tolist()
    profiles, rows = masked_items(events, requests, "now")
    assert profiles.tolist() == [0] * 4 + [1] * 5
    assert rows.tolist() == events.item[[0, 1, 2, 3, 20, 21, 22, 23, 24]].tolist()


def test_fresh_ranks_are_those_of_an_evaluation(dataset: Dataset, release: Release, events: EventIds) -> None:
    tested = last_events(dataset, events, TEST)
    expected, _ = model_ranks(release.model, release.tokenizer, events, tested)
    found = stale_ranks(release.model, release.tokenizer, events, stale_requests(tested, 0))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("masked", ["then", "now"])
def test_ranks_equal_a_loop_over_profiles(
    dataset: Dataset, release: Release, events: EventIds, masked: Any
) -> None:
    model, tokenizer = release.model, release.tokenizer
    requests = stale_requests(last_events(dataset, events, VALIDATION), 4)
    found = stale_ranks(model, tokenizer, events, requests, masked)
    assert len(found) > 10 and len(set(found.tolist())) > 5
    for rank, first, request, target in zip(found.tolist(), *requests, strict=True):
        one = StaleRequests(np.array([first]), np.array([request]), np.array([target]))
        facet_ids, item_ids, span = request_tokens(WINDOW, tokenizer, events, one)
        with torch.no_grad():
            items = model.item_vectors()
            hidden = model(
                torch.from_numpy(facet_ids),
                torch.from_numpy(item_ids),
                layout(torch.from_numpy(span.lengths)),
                items,
            )
            scores = model.logits(hidden[-1], items.vectors).tolist()
        wanted = int(events.item[target])
        seen = set(events.item[first : request if masked == "then" else target].tolist()) - {wanted}
        rivals = [row for row in range(FIRST_KNOWN, len(scores)) if row not in seen]
        # Batched arithmetic may swap two items whose scores are all but equal.
        assert sum(scores[row] > scores[wanted] + 1e-4 for row in rivals) <= rank
        assert rank <= sum(scores[row] >= scores[wanted] - 1e-4 for row in rivals) - 1


def test_the_document(config: StalenessConfig, dataset: Dataset, events: EventIds, tmp_path: Path) -> None:
    file = tmp_path / "curve.png"
    report = json.loads(json.dumps(measure(replace(config, plot=file), never, silent)))
    tested = last_events(dataset, events, TEST)
    lengths = tested.last_row - tested.first_row + 1
    assert report["profiles"] == [int((lengths >= k + 2).sum()) for k in (0, 2, 5)]
    curve = report["curve"]
    assert curve["k"] == [0, 2, 5]
    for figure in ("ndcg@10", "hr@10"):
        for place in range(3):
            means = [curve[name][figure][place] for name in ("next_item", "multi_token")]
            assert means[0] != means[1]
            assert report["difference"][figure][place] == pytest.approx(means[1] - means[0])
            low, high = report["difference_ci95"][figure][place]
            assert low <= report["difference"][figure][place] <= high
            low, high = curve["next_item"][f"{figure}_ci95"][place]
            assert low <= means[0] <= high
    assert report["settings"]["k"] == [0, 2, 5] and report["settings"]["multi_token"]["horizon"] == 32
    assert "last-two" in report["protocol"] and report["environment"]["commit"]
    assert len(table(report).splitlines()) == 2 + 1 + 3
    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and file.stat().st_size > 10_000


def test_both_models_rank_the_same_profiles(config: StalenessConfig, releases: Callable[..., Path]) -> None:
    """The same release twice differs from itself by exactly nothing, in every drawing of profiles."""
    report = measure(replace(config, releases=(releases(0), releases(0))), never, silent)
    assert report["curve"]["next_item"] == report["curve"]["multi_token"]
    assert report["difference"]["ndcg@10"] == [0.0] * 3
    assert report["difference_ci95"]["ndcg@10"] == [[0.0, 0.0]] * 3


def test_two_runs_differ_by_the_objective_alone(synthetic_folder: Path, tmp_path: Path) -> None:
    tiny = "--decoder.num-heads 1 --decoder.num-layers 1 --window.window 20 --window.block 5"
    config = StalenessConfig(
        data=synthetic_folder, out=tmp_path, k=(0, 3), epochs=1, width=8, pretrain=f"{tiny} --patience 1"
    )
    seen: list[PretrainConfig] = []

    def run(_: str, module: str, *arguments: object) -> dict[str, Any]:
        assert module == "foundation.pretrain"
        seen.append(tyro.cli(PretrainConfig, args=[str(argument) for argument in arguments]))
        return pretrain(seen[-1])

    report = measure(config, run, silent)
    plain, multi = seen
    assert plain.objective.multi_token == MultiTokenConfig()
    assert multi.objective.multi_token == config.multi_token
    same = replace(plain.objective, multi_token=config.multi_token)
    assert replace(plain, out=multi.out, objective=same) == multi
    assert plain.protocol == "last-two" and plain.model.decoder.dropout == 0.2
    assert plain.early_stopping.patience == 1
    assert [each.out.name for each in seen] == ["next_item", "multi_token-32-half16events-normalised"]
    # Finished runs are used again: the same releases, the same figures.
    again = measure(config, run, silent)
    assert again["releases"] == report["releases"] and again["curve"] == report["curve"]


def test_every_multi_token_setting_reaches_the_run(tmp_path: Path) -> None:
    prediction = MultiTokenConfig(horizon=9, seconds=60.0, half_life=2.5, half_life_unit="seconds")
    config = StalenessConfig(out=tmp_path)
    parsed = tyro.cli(PretrainConfig, args=pretrain_arguments(config, tmp_path, prediction))
    assert parsed.objective.multi_token == prediction
    assert parsed.out == tmp_path / "multi_token-9-half2.5seconds-within60s"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"k": ()}, "--k is ''"),
        ({"k": (2, 1)}, "--k is '2 1'; it must be"),
        ({"k": (-1, 1)}, "at least 0"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"dropout": 1.0}, "--dropout is 1.0"),
        ({"multi_token": MultiTokenConfig(horizon=1)}, "multi-token.horizon is 1; it must be at least 2"),
        ({"role": "validation", "protocol": "last"}, "choose --protocol last-two"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        StalenessConfig(**wrong)


def test_nothing_is_trained_for_a_plot_or_k_that_cannot_be(synthetic_folder: Path, tmp_path: Path) -> None:
    config = StalenessConfig(data=synthetic_folder, out=tmp_path, k=(0, 5_000))
    with pytest.raises(DataError, match=r"--k 5000: no tested profile .* has 5002 events"):
        measure(config, never, silent)
    for file, says in ((tmp_path / "a.svg", r"name it \.png"), (tmp_path / "b" / "a.png", "no folder")):
        with pytest.raises(DataError, match=says):
            measure(replace(config, plot=file), never, silent)


def test_releases_of_different_protocols_are_refused(
    config: StalenessConfig, releases: Callable[..., Path]
) -> None:
    mixed = replace(config, releases=(releases(0), releases(0, "last")))
    with pytest.raises(DataError, match=r"trained_on.cut.protocol is 'last'"):
        measure(mixed, never, silent)


def test_the_last_line_is_the_document(
    config: StalenessConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config.releases is not None
    arguments = ["--releases", *map(str, config.releases), "--data", str(config.data), "--k", "0", "3"]
    monkeypatch.setattr(sys, "argv", ["staleness", *arguments])
    staleness.main()
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["curve"]["k"] == [0, 3]
    assert len(lines) > 5
