"""Byte-wise dropout keeps the mean, drops the share, and is torch's in evaluation."""

from __future__ import annotations

import pytest
import torch

from foundation.dropout import Dropout, set_dropout


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_drops_the_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(0)
    y = Dropout(share)(torch.ones(200_003))
    assert (y == 0).float().mean().item() == pytest.approx(share, abs=0.005)
    assert y.mean().item() == pytest.approx(1.0, abs=0.01)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(80_000)) == 0).view(-1, 8).float()
    correlation = torch.corrcoef(dropped.T) - torch.eye(8)
    assert correlation.abs().max() < 0.05


def test_gradient_passes_where_values_do() -> None:
    x = torch.ones(1_001, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_the_same_seed_drops_the_same_elements() -> None:
    first, second = (torch.manual_seed(7) and Dropout(0.2)(torch.ones(999)) for _ in range(2))
    assert torch.equal(first, second)


def test_evaluation_and_a_share_of_nothing_change_nothing() -> None:
    x = torch.randn(13)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_a_share_near_one_keeps_finite_values() -> None:
    y = Dropout(0.9999)(torch.ones(100_000))
    assert y.isfinite().all()
    assert set(y.unique().tolist()) == {0.0, 256.0}


@pytest.mark.parametrize("kind", [Dropout, torch.nn.Dropout])
def test_every_dropout_of_a_model_can_be_changed(kind) -> None:
    model = torch.nn.Sequential(torch.nn.Identity(), kind(0.5)).train()
    set_dropout(model, 0.0)
    x = torch.ones(1000)
    assert torch.equal(model(x), x)
    set_dropout(model, 0.25)
    assert 0.15 < (model(x) == 0).float().mean() < 0.35
