"""int8 inside `decoder_step` and `score_candidates`, held to `serving.quantise`'s plain modules on every path.

A value that both compute in float32, in another order of sums, now and then lies on either side of where rounding to
int8 changes; that row then differs by about one step. So half of the rows are held to float32's own tolerance, and all
of them to less than what int8 itself costs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from foundation.branches import branches
from foundation.decoder import Decoder, DecoderConfig
from foundation.layout import layout
from ranker.arches.interaction import Interaction, InteractionConfig, Widths
from serving.fused_candidates import FusedCandidates
from serving.fused_decoder import FusedDecoder
from serving.quantise import QuantisedLinear, quantise_halves
from serving.split import Halves, ItemRows

TOLERANCE, STEP = 5e-6, 5e-2  # of the largest value
NEW, STORED = [1, 7, 0, 40, 1, 3, 2, 1, 1, 18], [4, 0, 30, 1, 2, 9, 0, 5, 1, 6]
ITEMS, VECTOR, F, D = 23, 19, 5, 14


def _quantised(part: nn.Module, rows: bool = False) -> Any:
    """A decoder, or an interaction, as `quantise_halves` leaves it."""
    is_decoder = isinstance(part, Decoder)
    profile = nn.ModuleDict({"decoder": part if is_decoder else nn.Identity()})
    candidate = nn.ModuleDict({"interaction": nn.Identity() if is_decoder else part})
    halves: Any = Halves(profile, candidate)  # type: ignore[arg-type]  # only what quantise_halves looks for
    of_part: Any = quantise_halves(halves, rows=rows, linears=True)
    return of_part.profile["decoder"] if is_decoder else of_part.candidate["interaction"]


def _row_errors(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).abs().flatten(1).amax(1) / max(1.0, float(wanted.abs().max()))


def _is_held(found: Tensor, wanted: Tensor) -> bool:
    errors = _row_errors(found, wanted)
    return bool(errors.median() <= TOLERANCE and errors.max() <= STEP)


def _decoder(width: int, heads: int) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(width, num_layers=2, num_heads=heads)).eval()
    for parameter in decoder.requires_grad_(False).parameters():
        parameter.normal_(std=0.3 if parameter.dim() == 1 else 1 / width**0.5)
    return decoder


# Widths that are no multiple of 4 or 16 too.
@pytest.mark.parametrize("size", [(64, 2), (28, 1), (42, 3)], ids=str)
@pytest.mark.usefixtures("nan_filled_memory")
def test_the_decoder(capability: Any, capabilities: list[str], size: tuple[int, int]) -> None:
    decoder = _decoder(*size)
    reference = _quantised(decoder)
    assert sum(isinstance(module, QuantisedLinear) for module in reference.modules()) == 8
    fused = FusedDecoder(reference)
    random = torch.Generator().manual_seed(1)
    x, y = (torch.randn(sum(lengths), size[0], generator=random) for lengths in (STORED, NEW))
    where, new_where = layout(torch.tensor(STORED)), layout(torch.tensor(NEW))
    wanted, stored = reference.prefill(x, where)
    wanted_on, _ = reference.extend(y, new_where, stored)
    forks = branches(stored.offsets, torch.tensor([0, *NEW]).cumsum(0))
    wanted_branches = reference.branch(y, forks, stored.layers[1:])
    assert _row_errors(decoder(x, where), wanted).median() > 100 * TOLERANCE, "int8 isn't float32"
    for name in capabilities:
        with capability(name):
            assert _is_held(fused(x, where), wanted), name
            assert _is_held(fused.extend(y, new_where, stored)[0], wanted_on), name
            assert _is_held(fused.branch(y, forks, stored.layers[1:]), wanted_branches), name


@pytest.mark.parametrize("rows", [False, True], ids=["float32 rows", "int8 rows"])
@pytest.mark.parametrize("widths", [(48, 24), (15, 17, 33), (128, 64)], ids=str)
@pytest.mark.usefixtures("nan_filled_memory")
def test_scored_candidates(
    capability: Any, capabilities: list[str], widths: tuple[int, ...], rows: bool
) -> None:
    torch.manual_seed(0)
    config = InteractionConfig(num_dots=3, dot_width=20, hidden_widths=widths)
    plain = Interaction(config, Widths(VECTOR, 8, F, D), 2).eval().requires_grad_(False)
    plain.set_submodule("candidate_projection", ItemRows(torch.randn(ITEMS, widths[0])))
    plain.set_submodule("candidate_dots", ItemRows(torch.randn(ITEMS, 20) * 0.3))
    reference = _quantised(plain, rows)
    fused = FusedCandidates(_quantised(plain, rows))
    lengths = torch.tensor([0, 61, 0, 1, 139])
    C = int(lengths.sum())
    call = (
        torch.randn(len(lengths) - 1, VECTOR), torch.randint(0, ITEMS, (C,)), lengths.cumsum(0).int(),
        torch.randn(C, F), torch.randn(C, D),
    )  # fmt: skip
    wanted = reference(*call)
    assert _row_errors(plain(*call), wanted).median() > 100 * TOLERANCE, "int8 isn't float32"
    for name in capabilities:
        with capability(name):
            assert _is_held(fused(*call), wanted), name


@pytest.mark.parametrize("offsets", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["float32 rows", "int8 rows"])
def test_opcheck_of_scoring(offsets: torch.dtype, rows: bool) -> None:
    operands = tuple(_scoring_operands(offsets, rows))
    results = torch.library.opcheck(torch.ops.marquee.score_candidates.default, operands)
    assert set(results.values()) == {"SUCCESS"}


def _scoring_operands(offsets: torch.dtype, rows: bool) -> list[Any]:
    """As the module itself calls the operator; linear layers int8."""
    torch.manual_seed(0)
    plain = Interaction(InteractionConfig(3, 20, (24, 12)), Widths(VECTOR, 8, F, 0), 2)
    plain.set_submodule("candidate_projection", ItemRows(torch.randn(ITEMS, 24)))
    plain.set_submodule("candidate_dots", ItemRows(torch.randn(ITEMS, 20)))
    call = (
        torch.randn(2, VECTOR), torch.tensor([3, 1, 4, 1, 5]), torch.tensor([0, 2, 5]).to(offsets),
        torch.randn(5, F),
    )  # fmt: skip
    seen = _Seen()
    with seen, torch.no_grad():
        FusedCandidates(_quantised(plain.eval(), rows))(*call)
    return seen.operands


class _Seen(TorchDispatchMode):
    """Keeps the operands of `score_candidates`."""

    operands: list[Any]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.marquee.score_candidates.default:
            self.operands = list(args)
        return func(*args, **(kwargs or {}))


def test_backward_through_scoring_says_that_there_is_none() -> None:
    operands = _scoring_operands(torch.int64, rows=False)
    operands[5] = operands[5].clone().requires_grad_()
    logits = torch.ops.marquee.score_candidates(*operands)
    with pytest.raises(RuntimeError, match="derivative for marquee::score_candidates is not implemented"):
        logits.sum().backward()


def test_backward_through_a_linear_layer_says_that_there_is_none() -> None:
    layer = QuantisedLinear(nn.Linear(8, 4))
    x = torch.randn(3, 8, requires_grad=True)
    y = torch.ops.marquee.linear(x, layer.packed, layer.scales, layer.bias, 4)
    with pytest.raises(RuntimeError, match="derivative for marquee::linear is not implemented"):
        y.sum().backward()
