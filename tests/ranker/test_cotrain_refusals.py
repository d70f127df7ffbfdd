"""Co-training refuses what doesn't fit together, and shards that went bad, in one line that says what."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from foundation.dataset import load_dataset
from foundation.errors import DataError
from foundation.pretrain import pretrain
from foundation.pretraining import PretrainConfig
from foundation.split import draw_split
from ranker.cotrain import cotrain
from ranker.requests.logged import LoggedConfig
from ranker.requests.request import RequestConfig
from ranker.rows.folder import RowFolder
from ranker.training.optim import RankerOptimConfig


@pytest.fixture
def damaged(rows_folder: Path, tmp_path: Path) -> Path:
    """A copy of the rows, of whose training shard row group 3 can't be read."""
    shard = (
        Path(shutil.copytree(rows_folder, tmp_path / "rows")) / "train" / "draw-000" / "part-00000.parquet"
    )
    column = pq.read_metadata(shard).row_group(3).column(2)
    content = bytearray(shard.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    content[first : first + 16] = b"\xff" * 16
    shard.write_bytes(content)
    return tmp_path / "rows"


@pytest.mark.usefixtures("group")
def test_a_row_group_that_goes_bad_stops_the_run(config, damaged) -> None:
    with pytest.raises(DataError, match=r"part-00000\.parquet: row group 3: "):
        cotrain(replace(config, rows=damaged))


def test_a_row_group_that_one_process_meets_ends_them_all_with_a_line_each(
    damaged, release_folder, tmp_path
) -> None:
    words = ["--rows", str(damaged), "--release", str(release_folder), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "ranker.cotrain", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert sum("part-00000.parquet: row group 3: " in line for line in errors) == 1
    # torchrun may end the other before it has anything to say.
    assert all("row group 3: " in line or "lost another process" in line for line in errors)
    assert "[rank" not in done.stderr


@pytest.mark.usefixtures("group")
def test_a_row_group_that_goes_bad_is_skipped_told_and_counted(config, damaged, capsys) -> None:
    document = cotrain(replace(config, rows=damaged, logged=LoggedConfig(bad_rows="skip")))
    assert document["steps"] == 20
    assert "row group 3: " in capsys.readouterr().err
    (said,) = document["skipped"]
    assert "part-00000.parquet: row group 3: " in said
    sizes = RowFolder.open(damaged).shards("train")[0].row_groups
    assert 0 < document["skipped_requests"] <= 2 * sizes[3]


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed was 0 .* is 4 now"),
        ({"optim": RankerOptimConfig(decoder_share=1.0)}, "optim.decoder_share was 0.1 .* is 1.0 now"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(config, change, named) -> None:
    cotrain(config)
    with pytest.raises(DataError, match=named):
        cotrain(replace(config, **change))


def test_a_release_that_was_trained_on_what_is_held_out_here_is_refused(
    config, synthetic_folder, tmp_path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(synthetic_folder, other)
    split = draw_split(load_dataset(other).profile_ids, seed=5)
    (other / "split.json").write_text(split.to_json(), encoding="utf-8")
    failed = command(other, config.release, config.out)
    assert failed.returncode == 2
    # Another split gives other vocabularies too; whichever differs first is named.
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.splitlines()) == 1
    assert not (config.out / "ranker").exists()


@pytest.mark.usefixtures("group")
def test_a_release_whose_manifest_says_it_was_trained_on_more_is_refused(
    config, synthetic_folder, tmp_path
) -> None:
    copied = tmp_path / "release"
    shutil.copytree(config.release, copied)
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    manifest["trained_on"]["cut"] |= {"training_share": 1.0}
    (copied / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match=r"trained_on\.cut\.training_share is 1\.0"):
        cotrain(replace(config, release=copied, data=synthetic_folder, rows=None))


@pytest.mark.usefixtures("group")
def test_a_release_trained_on_events_of_every_profile_is_refused(config, synthetic_folder, tmp_path) -> None:
    trained = pretrain(PretrainConfig(synthetic_folder, tmp_path / "last", "last", epochs=1))
    with pytest.raises(DataError, match=r"trained_on\.cut\.protocol is 'last'"):
        cotrain(replace(config, release=Path(trained["release"]), data=synthetic_folder, rows=None))


def test_a_release_of_another_schema_is_refused_in_one_line(config, synthetic_folder, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(synthetic_folder, other)
    schema = (other / "schema.toml").read_text(encoding="utf-8")
    (other / "schema.toml").write_text(
        schema.replace("max_values = 3", "max_values = 2", 1), encoding="utf-8"
    )
    failed = command(other, config.release, config.out)
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1
    assert "schema.toml: item_features differs from the release's" in failed.stderr


@pytest.mark.usefixtures("group")
def test_rows_without_test_requests_are_refused_before_training(config, rows_folder, tmp_path) -> None:
    rows = Path(shutil.copytree(rows_folder, tmp_path / "rows"))
    manifest = json.loads((rows / "manifest.json").read_text(encoding="utf-8"))
    (rows / "manifest.json").write_text(json.dumps(manifest | {"test": []}), encoding="utf-8")
    with pytest.raises(DataError, match="rows: holds no test requests"):
        cotrain(replace(config, rows=rows))
    (rows / "manifest.json").write_text(json.dumps(manifest | {"validation": []}), encoding="utf-8")
    assert cotrain(replace(config, rows=rows, out=tmp_path / "out", epochs=1))["steps"] == 10


@pytest.mark.parametrize(
    ("content", "said"),
    [("[", "not a list of tasks"), ('[{"a": 1}]', "not a list of tasks"), ("[]", "has tasks")],
)
def test_changed_tasks_of_rows_are_named(rows_folder, tmp_path, content, said) -> None:
    rows = Path(shutil.copytree(rows_folder, tmp_path / "rows"))
    (rows / "tasks.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"tasks\.json: {said}"):
        RowFolder.open(rows)


@pytest.mark.usefixtures("group")
def test_rows_of_another_release_are_refused(config, synthetic_folder, tmp_path) -> None:
    other = pretrain(PretrainConfig(synthetic_folder, tmp_path / "other", epochs=1))
    with pytest.raises(DataError, match=r"rows/manifest\.json: release\.version is .*; the release given is"):
        cotrain(replace(config, release=Path(other["release"])))


@pytest.mark.parametrize("change", [{"data": Path("data")}, {"rows": None}])
def test_either_data_or_rows_must_be_given(config, change) -> None:
    with pytest.raises(ValueError, match="give either data"):
        replace(config, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"draws": 2},
        {"requests": RequestConfig(negatives=3, per_profile=1)},
        {"logged": LoggedConfig(max_candidates=9)},
    ],
)
def test_how_to_make_rows_is_not_asked_of_rows_that_are_made(config, change) -> None:
    with pytest.raises(ValueError, match="say how rows are made of data"):
        replace(config, **change)


def command(data: Path, release: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = ["--data", str(data), "--release", str(release), "--out", str(out), *options]
    return subprocess.run(
        [sys.executable, "-m", "ranker.cotrain", *words, "--dot-width", "16"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"requests_per_batch": 0}, "requests_per_batch is 0"),
    ],
)
def test_settings_out_of_range_are_named(config, change, named) -> None:
    with pytest.raises(ValueError, match=named):
        replace(config, **change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"learning_rate": 0.0}, "optim.learning_rate is 0.0; it must be above 0"),
        ({"decoder_share": -0.1}, "optim.decoder_share is -0.1"),
    ],
)
def test_rates_out_of_range_are_named(change, named) -> None:
    with pytest.raises(ValueError, match=named):
        RankerOptimConfig(**change)
