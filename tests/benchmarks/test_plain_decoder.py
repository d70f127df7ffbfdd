"""The baseline stands on its own, and its padding changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.plain_decoder import PlainConfig, PlainModel, PlainTrainer, Window, rotate

SIZES = PlainConfig(
    width=8,
    num_layers=1,
    num_heads=2,
    dropout=0.0,
    temperature=0.1,
    hidden_share=0.0,
    context_share=0.0,
    num_context_columns=1,
    age_column=2,
)
NUM_ITEMS, NUM_FACET_ROWS = 12, 9


def _weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weights = {
        "facet_embedding.weight": draw(NUM_FACET_ROWS, 8),
        "item_tower.feature_rows": torch.randint(0, 5, (NUM_ITEMS, 2), generator=generator),
        "item_tower.id_embedding.weight": draw(NUM_ITEMS, 8),
        "item_tower.feature_embedding.weight": draw(5, 8),
        "item_tower.counts": torch.randint(1, 50, (NUM_ITEMS,), generator=generator),
        "item_tower.age_rows": torch.randint(0, NUM_FACET_ROWS, (NUM_ITEMS,), generator=generator),
        "item_tower.content": draw(NUM_ITEMS, 3),
        "item_tower.content_projection.weight": draw(8, 3),
        "item_tower.unseen": draw(8),
        "item_tower.count_gate.weight": draw(7, 1),
        "item_tower.age_gate.weight": draw(NUM_FACET_ROWS, 1),
        "decoder.blocks.0.attention.project_in.weight": draw(24, 8),
        "decoder.blocks.0.attention.project_out.weight": draw(8, 8),
        "decoder.blocks.0.feed_forward.project_in.weight": draw(32, 8),
        "decoder.blocks.0.feed_forward.project_in.bias": draw(32),
        "decoder.blocks.0.feed_forward.project_out.weight": draw(8, 32),
        "decoder.blocks.0.feed_forward.project_out.bias": draw(8),
    }
    for name in ("blocks.0.attention_norm", "blocks.0.feed_forward_norm", "final_norm"):
        weights |= {f"decoder.{name}.weight": 1 + draw(8), f"decoder.{name}.bias": draw(8)}
    weights["facet_embedding.weight"][0] = 0
    return weights


def _windows(*lengths: int) -> list[Window]:
    """Windows whose last target is out of vocabulary."""
    generator = torch.Generator().manual_seed(1)
    windows = []
    for length in lengths:
        targets = torch.randint(2, NUM_ITEMS, (length,), generator=generator)
        targets[-1] = 0
        facets = torch.randint(0, NUM_FACET_ROWS, (length, 3), generator=generator)
        windows.append(Window(facets, torch.randint(0, NUM_ITEMS, (length,), generator=generator), targets))
    return windows


def test_it_imports_nothing_of_ours() -> None:
    program = (
        "import sys; from benchmarks import plain_decoder; "
        "ours = {name for name in sys.modules if name.split('.')[0] in ('foundation', 'ranker', 'serving')}; "
        "assert ours <= {'foundation'}, ours"  # benchmarks/__init__.py imports the package for its settings
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_padding_changes_no_loss() -> None:
    model, windows = PlainModel(SIZES, _weights()), _windows(2, 7, 4)
    alone = [model.loss([window]) * (len(window.targets) - 1) for window in windows]
    together = model.loss(windows)
    assert together.item() == pytest.approx(sum(alone).item() / (1 + 6 + 3), rel=1e-5)  # type: ignore[union-attr]


def test_rotation_leaves_position_0_alone_and_depends_on_distance() -> None:
    q, k = torch.randn(2, 1, 1, 1, 6).expand(2, 1, 1, 5, 6)
    scores = rotate(q) @ rotate(k).transpose(-1, -2)
    assert torch.equal(rotate(q)[..., 0, :], q[..., 0, :])
    assert torch.allclose(scores[..., 1, 0], scores[..., 4, 3], atol=1e-5)
    assert not torch.allclose(scores[..., 1, 0], scores[..., 3, 0], atol=1e-3)


def test_a_weight_that_it_lacks_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"item_tower\.gate"):
        PlainModel(SIZES, {**_weights(), "item_tower.gate": torch.ones(1)})


def test_weights_are_copies() -> None:
    weights = _weights()
    before = weights["decoder.final_norm.bias"].clone()
    PlainTrainer(PlainModel(SIZES, weights), 0.0, 1.0).step(_windows(3, 5), 0.1)
    assert torch.equal(weights["decoder.final_norm.bias"], before)


def test_steps_with_dropout_and_masked_ids_lower_the_loss() -> None:
    torch.manual_seed(0)
    model = PlainModel(SIZES._replace(dropout=0.1, hidden_share=0.1), _weights())
    trainer, windows = PlainTrainer(model, 0.0, 1.0), _windows(6, 9, 3)
    losses = [trainer.step(windows, 0.02) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
