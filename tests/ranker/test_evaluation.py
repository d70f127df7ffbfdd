"""An evaluation says of rows what its definitions say of each request alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from foundation.dataset import Dataset
from foundation.errors import DataError
from foundation.release import Release
from ranker.arches.interaction import InteractionConfig
from ranker.artifact import TrainedRanker, save_ranker
from ranker.assembly import Assembly, DataFeatures, assemble_on
from ranker.evaluate import EvaluateConfig, evaluate_ranker
from ranker.evaluation.calibration_curve import calibration_curve
from ranker.evaluation.evaluation import evaluate, score
from ranker.evaluation.figures import Predictions, figures
from ranker.evaluation.metrics import auc, grouped_auc, sigmoid
from ranker.model import RankerConfig
from ranker.requests.request import RequestConfig
from ranker.requests.source import build_requests
from ranker.rows.folder import RowFolder
from ranker.rows.inputs import model_inputs
from ranker.rows.job import RowsConfig, make_rows
from ranker.rows.making import RowMaker
from ranker.rows.rows import Rows
from ranker.schema import load_tasks

INTERACTION = InteractionConfig(num_dots=3, dot_width=20, hidden_widths=(24, 12))


@pytest.fixture
def rows(synthetic_dataset: Dataset, make_assembly) -> Rows:
    tasks = load_tasks(synthetic_dataset.folder / "schema.toml")
    requests = build_requests(synthetic_dataset, tasks, "train", RequestConfig(per_profile=2))
    return RowMaker(synthetic_dataset, make_assembly("decoder").features).rows(requests)


@pytest.mark.parametrize(("tower", "layers"), [("decoder", 0), ("decoder", 1), ("pooled", 0)])
def test_scores_are_those_of_each_request_alone(rows: Rows, make_assembly, tower, layers) -> None:
    assembly: Assembly = make_assembly(tower, crossing_layers=layers)
    assembly.model.train()
    found = list(score(assembly.model, assembly.features, rows).served.values())[-1]
    assert assembly.model.training, "the model is back in the mode it was in"
    assembly.model.eval()
    for request in (0, 7, len(rows) - 1):
        first, last = rows.candidate_offsets[request : request + 2]
        with torch.no_grad():
            alone = assembly.model(model_inputs(assembly.features, rows.take(np.array([request]))))
        np.testing.assert_allclose(found[first:last], alone.numpy(), rtol=1e-4, atol=1e-5)


def test_figures_of_a_slice_are_those_of_its_candidates(rows: Rows, make_assembly) -> None:
    assembly: Assembly = make_assembly("decoder")
    evaluation = evaluate(assembly.model, assembly.features, rows)
    logits = list(score(assembly.model, assembly.features, rows).served.values())[-1]
    mode = list(evaluation.modes.values())[-1]
    num_events = rows.histories.num_events_before + rows.history_lengths
    inside = np.repeat((num_events >= 10) & (num_events < 50), np.diff(rows.candidate_offsets))
    for column, task in enumerate(assembly.model.tasks):
        mask = rows.mask[:, column]
        whole, part = evaluation.metrics[task], mode.slices["history_length"]["10-49"][task]
        assert whole["candidates"] == mask.sum()
        assert part["candidates"] == (mask & inside).sum() < whole["candidates"]
        kept = mask & inside
        assert part["auc"] == pytest.approx(auc(logits[kept, column], rows.labels[kept, column]))
        for slicing in mode.slices.values():
            assert sum(each[task]["candidates"] for each in slicing.values()) == whole["candidates"]


def test_each_mode_has_figures_and_the_crossing_ones_are_the_rankers(rows: Rows, make_assembly) -> None:
    assembly: Assembly = make_assembly("decoder", crossing_layers=2)
    logits = score(assembly.model, assembly.features, rows).served
    document = evaluate(assembly.model, assembly.features, rows).to_json()
    assert list(logits) == list(document["modes"]) == ["vector", "crossing"]
    assert document["tasks"] == document["modes"]["crossing"]["tasks"]
    for mode, found in logits.items():
        kept = rows.mask[:, 0]
        expected = auc(found[kept, 0], rows.labels[kept, 0])
        assert document["modes"][mode]["tasks"][assembly.model.tasks[0]]["auc"] == pytest.approx(expected)
    assert not np.allclose(logits["vector"], logits["crossing"], atol=1e-4)


def test_scalars_name_task_mode_and_slice(rows: Rows, make_assembly) -> None:
    assembly: Assembly = make_assembly("decoder", crossing_layers=1)
    evaluation = evaluate(assembly.model, assembly.features, rows)
    vector, crossing = evaluation.modes["vector"], evaluation.modes["crossing"]
    scalars = evaluation.scalars()
    assert scalars["watch_gauc"] == vector.tasks["watch"]["gauc"]
    assert scalars["watch_crossing_gauc"] == crossing.tasks["watch"]["gauc"]
    expected = crossing.slices["history_length"]["10-49"]["like"]["calibration"]
    assert scalars["history_length/10-49/like_crossing_calibration"] == expected
    assert not any(np.isnan(value) for value in scalars.values())
    assert not any(name.endswith("_candidates") for name in scalars)


def test_the_document_is_json_without_nan(rows: Rows, make_assembly) -> None:
    assembly: Assembly = make_assembly("pooled")
    one = rows.take(np.array([0]))
    rows_without_labels = replace(one, mask=np.zeros_like(one.mask))
    document = evaluate(assembly.model, assembly.features, rows_without_labels).to_json()
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["tasks"]["watch"]["auc"] is None
    assert document["modes"]["vector"]["tasks"] == document["tasks"]


def test_log_rates_calibrate_sampled_negatives() -> None:
    """A model that is right about a sampled world is calibrated in the whole one, and without the rate isn't."""
    rng = np.random.default_rng(0)
    probs = sigmoid(rng.normal(-4.0, 1.0, size=400_000))
    labels = (rng.random(len(probs)) < probs).astype(np.float32)
    kept = (labels > 0) | (rng.random(len(probs)) < 0.1)
    log_rate = float(np.log(0.1))
    logits = np.log(probs / (1 - probs))[kept] - log_rate
    offsets = np.array([0, len(logits)])
    right = Predictions(logits, logits, labels[kept], offsets, log_rate)
    wrong = Predictions(logits, logits - log_rate, labels[kept], offsets, log_rate)
    assert figures(right)["calibration"] == pytest.approx(1.0, abs=0.02)
    assert figures(wrong)["calibration"] > 4
    curve = calibration_curve(right.probs, right.labels, log_rate)
    np.testing.assert_allclose(curve.observed[5:], curve.predicted[5:], rtol=0.25)
    assert curve.predicted.tolist() == sorted(curve.predicted)
    assert curve.candidates.sum() == kept.sum()
    # The order of candidates, and what is measured in the sampled world, stay.
    for name in ("auc", "gauc", "ndcg@10", "normalised_entropy"):
        without = Predictions(logits, logits, labels[kept], offsets, 0.0)
        assert figures(right)[name] == figures(without)[name]


def test_log_rates_reach_the_figures_of_their_task(rows: Rows, make_assembly) -> None:
    assembly: Assembly = make_assembly("decoder")
    plain = evaluate(assembly.model, assembly.features, rows).metrics
    rated = evaluate(assembly.model, assembly.features, rows, (0.0, -2.0)).metrics
    first, second = assembly.model.tasks
    assert rated[first] == plain[first]
    assert rated[second]["calibration"] != plain[second]["calibration"]
    assert rated[second]["normalised_entropy"] == plain[second]["normalised_entropy"]


def test_request_aucs_are_of_labelled_candidates(rows: Rows, make_assembly) -> None:
    assembly: Assembly = make_assembly("decoder")
    evaluation = evaluate(assembly.model, assembly.features, rows)
    logits = list(score(assembly.model, assembly.features, rows).served.values())[-1]
    for request in (0, 3):
        first, last = rows.candidate_offsets[request : request + 2]
        for column, task in enumerate(assembly.model.tasks):
            kept = np.arange(first, last)[rows.mask[first:last, column]]
            alone = grouped_auc(logits[kept, column], rows.labels[kept, column], np.array([0, len(kept)]))
            np.testing.assert_equal(evaluation.request_auc[task][request], alone[0])
    assert evaluation.request_auc[task].shape == (len(rows),)


@pytest.fixture(scope="module")
def rows_folder(synthetic_folder: Path, release_folder: Path, tmp_path_factory) -> RowFolder:
    out = tmp_path_factory.mktemp("rows") / "rows"
    make_rows(RowsConfig(synthetic_folder, release_folder, out))
    return RowFolder.open(out)


@pytest.fixture
def on_rows(rows_folder: RowFolder, release: Release) -> Assembly:
    """A ranker that reads the position at which a candidate was shown, with weights that heed it."""
    torch.manual_seed(3)
    config = RankerConfig(embedding_dim=4, item_embedding_dim=8, interaction=INTERACTION)
    data = DataFeatures(rows_folder.features, rows_folder.items)
    assembly = assemble_on(config, data, release, [task.name for task in rows_folder.tasks])
    with torch.no_grad():
        for weight in assembly.model.candidate_features.parameters():
            weight.normal_()
    return assembly


def test_positions_are_what_serving_says_of_them(rows_folder: RowFolder, on_rows: Assembly) -> None:
    model, features = on_rows
    rows = rows_folder.read_all("test")
    others = np.where(rows.candidates.sparse > 2, 2, 3)
    shown_elsewhere = replace(rows, candidates=rows.candidates._replace(sparse=others))
    trained = [model.eval()(model_inputs(features, each)).detach() for each in (rows, shown_elsewhere)]
    assert not torch.allclose(*trained, atol=1e-3)
    scores = [score(model, features, each) for each in (rows, shown_elsewhere)]
    served = [each.served["vector"] for each in scores]
    assert np.array_equal(served[0], served[1])
    for each, as_trained in zip(scores, trained, strict=True):
        np.testing.assert_allclose(each.shown["vector"], as_trained.numpy(), rtol=1e-4, atol=1e-5)
    first = features.config.candidates.known[0].lookup.lookup(np.array([0]))
    at_first = rows.candidates._replace(sparse=np.full_like(others, first[0]))
    expected = model(model_inputs(features, replace(rows, candidates=at_first))).detach().numpy()
    np.testing.assert_allclose(served[0], expected, rtol=1e-4, atol=1e-5)
    # The order is the served one; probabilities are judged at the positions that the labels are of.
    one, other = (evaluate(model, features, each).metrics["watch"] for each in (rows, shown_elsewhere))
    for name in ("auc", "gauc", "ndcg@10"):
        assert one[name] == other[name]
    for name in ("calibration", "normalised_entropy"):
        assert one[name] != pytest.approx(other[name], abs=1e-4)


def test_the_command_reads_rows_or_data(
    rows_folder: RowFolder, on_rows: Assembly, release: Release, synthetic_folder: Path, tmp_path: Path
) -> None:
    trained = TrainedRanker(on_rows.model, on_rows.features, rows_folder.tasks)
    save_ranker(tmp_path / "ranker", trained, release.manifest, {})
    plots, dump = tmp_path / "plots", tmp_path / "dump.parquet"
    of_rows = EvaluateConfig(tmp_path / "ranker", rows=rows_folder.path, plots=plots, dump=dump)
    found = evaluate_ranker(of_rows)
    assert found == evaluate_ranker(EvaluateConfig(tmp_path / "ranker", synthetic_folder))
    assert [path.name for path in plots.iterdir()] == ["calibration.png"]
    assert pl.read_parquet(dump)["auc_watch"].mean() == pytest.approx(found["tasks"]["watch"]["gauc"])
    with pytest.raises(ValueError, match="give one of them"):
        EvaluateConfig(tmp_path / "ranker")
    other_tasks = TrainedRanker(on_rows.model, on_rows.features, rows_folder.tasks[::-1])
    save_ranker(tmp_path / "other", other_tasks, release.manifest, {})
    with pytest.raises(DataError, match=r"tasks is \('watch', 'like'\), the ranker's is \('like', 'watch'\)"):
        evaluate_ranker(replace(of_rows, ranker=tmp_path / "other"))
