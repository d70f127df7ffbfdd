"""Exported programs on disk: no pickle, no weights, and the same values when read back."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from serving.programs import (
    export_program,
    load_program,
    load_weights,
    save_program,
    unwanted_members,
    weights_of,
)


class Small(nn.Module):
    """Parameters, a buffer, a constant tensor and a jagged input."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("table", torch.randn(10, 3))

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        taken = self.table.index_select(0, rows)
        return self.linear(x) + taken * torch.tensor([1.0, 2.0, 3.0]), taken


SHAPES = ({0: Dim("C", min=1)}, {0: Dim("C", min=1)})


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def inputs_of(rows: int) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 4), torch.randint(0, 10, (rows,))


@pytest.fixture
def path(small: Small, tmp_path: Path) -> Path:
    save_program(export_program(small, inputs_of(5), SHAPES), tmp_path / "small.pt2")
    return tmp_path / "small.pt2"


@pytest.mark.parametrize("rows", [1, 2, 17])
def test_a_program_read_back_gives_the_same_values(small: Small, path: Path, rows: int):
    inputs = inputs_of(rows)
    run = load_program(path, weights_of(small))
    torch.testing.assert_close(run(*inputs), small(*inputs), rtol=0, atol=0)


def test_other_weights_give_other_values(small: Small, path: Path):
    weights = weights_of(small)
    inputs = inputs_of(3)
    doubled = load_program(path, {**weights, "table": weights["table"] * 2})
    assert not torch.equal(doubled(*inputs)[0], small(*inputs)[0])


def test_weights_of_another_shape_are_refused(small: Small, path: Path):
    weights = weights_of(small)
    with pytest.raises(ValueError, match=r"has shape \[10, 3\]; its weight has \[9, 3\]"):
        load_program(path, {**weights, "table": weights["table"][:9]})
    del weights["table"]
    with pytest.raises(ValueError, match="takes 3 weights; there are 2"):
        load_program(path, weights)


def test_nothing_in_the_archive_is_pickled_or_a_weight(small: Small, path: Path):
    weights = {bytes(tensor.numpy().tobytes()) for tensor in weights_of(small).values()}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert content not in weights, name
            assert not is_pickle(content), name
            assert b"test_programs.py" not in content, f"{name} tells where it was exported"


def is_pickle(content: bytes) -> bool:
    if content[:2] == b"PK":  # a zip of torch.save
        return True
    if content[:1] != b"\x80":
        return False
    try:
        list(pickletools.genops(content))
    except ValueError:
        return False
    return True


def test_a_plain_program_is_seen_to_hold_weights_and_a_pickle(small: Small, tmp_path: Path):
    plain = torch.export.export(small, inputs_of(5), dynamic_shapes=SHAPES)
    torch.export.save(plain, tmp_path / "plain.pt2")
    unwanted = " ".join(unwanted_members(tmp_path / "plain.pt2"))
    assert "data/sample_inputs/model.pt" in unwanted
    assert "data/weights/weight_0" in unwanted
    with pytest.raises(ValueError, match="without weights"):
        save_program(plain, tmp_path / "again.pt2")


def test_weights_are_loaded_to_cache_lines(tmp_path: Path):
    """Sizes that leave every later tensor of the file at another offset."""
    saved = {f"{size}": torch.randn(size) for size in (1, 3, 5, 7, 11, 13)}
    saved |= {f"int8_{size}": torch.arange(size, dtype=torch.int8) for size in (1, 2, 3)}
    save_file(saved, tmp_path / "weights.safetensors")
    loaded = load_weights(tmp_path / "weights.safetensors")
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())
    assert {tensor.data_ptr() % 64 for tensor in loaded.values()} == {0}
