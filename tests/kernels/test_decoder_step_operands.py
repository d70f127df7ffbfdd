"""The fused decoder's operands: wrong ones are named, offsets of both kinds, export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foundation.decoder import Decoder, DecoderConfig
from serving.fused_decoder import FusedDecoder
from serving.kernels.decoder.ops import Stored, decoder_step

D, H, F, L, P = 24, 3, 96, 2, 64
NAMES = [
    "x", "offsets", "rotations", "weights", "scales", "stored", "stored_offsets", "num_heads", "branches", "window",
    "num_prefix", "last_only", "num_kept",
]  # fmt: skip


def _fused() -> FusedDecoder:
    torch.manual_seed(0)
    return FusedDecoder(Decoder(DecoderConfig(D, num_layers=L, num_heads=H)), num_positions=P)


def _operands(dtype: torch.dtype = torch.int64, **changes: Any) -> list[Any]:
    """Two sequences of 3 and 4 new tokens after 5 and 2 stored ones."""
    weights = _fused()._weights(L)
    stored = [torch.randn(7, H, D // H) for _ in range(2 * L)]
    offsets = torch.tensor([0, 3, 7], dtype=dtype)
    values = [
        torch.randn(7, D), offsets, weights.rotations, weights.tensors, [], stored,
        torch.tensor([0, 5, 7], dtype=dtype), H, False, 0, 0, False, 1,
    ]  # fmt: skip
    return [changes.get(name, value) for name, value in zip(NAMES, values, strict=True)]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"x": torch.zeros(7, D).double()}, TypeError, "x is Double; it must be float32"),
        ({"x": torch.zeros(7)}, ValueError, r"x has shape \[7\]; it must be \[T, D\]"),
        ({"x": torch.zeros(D, 7).t()}, ValueError, r"x has strides \[1, 7\]; it must be contiguous"),
        ({"num_heads": 5}, ValueError, r"num_heads is 5; x's width, 24, must be a multiple of 2 \* num_heads"),
        ({"num_heads": 2**63 - 1}, ValueError, "num_heads is 9223372036854775807; x's width, 24"),
        ({"offsets": torch.zeros(3)}, TypeError, "offsets is Float; it must be int64 or int32"),
        ({"offsets": torch.zeros(0).long()}, ValueError, r"offsets has shape \[0\]; it must be \[B \+ 1\]"),
        ({"offsets": torch.tensor([1, 3, 7])}, ValueError, r"offsets\[0\] is 1; it must be 0"),
        ({"offsets": torch.tensor([0, 9, 7])}, ValueError, r"offsets\[2\] is 7; .* at least offsets\[1\], 9"),
        ({"offsets": torch.tensor([0, 3, 8])}, ValueError, r"offsets\[2\] is 8; .* number of its tokens, 7"),
        ({"offsets": torch.tensor([0, 7])}, ValueError, "offsets are of 1 sequences, stored_offsets of 2"),
        ({"stored_offsets": torch.tensor([0, 5, 8])}, ValueError, r"stored_offsets\[2\] is 8; .* tokens, 7"),
        ({"stored_offsets": None}, ValueError, "there are 4 stored keys and values and no stored_offsets"),
        ({"stored": []}, ValueError, "there are 0 stored keys and values but stored_offsets"),
        ({"stored": [torch.zeros(7, H, D // H)] * 2}, ValueError, "must be 2 for each layer, 4"),
        ({"stored": [torch.zeros(7, H, 7)] * 4}, ValueError, r"stored\[0\] has shape \[7, 3, 7\]"),
        ({"rotations": torch.zeros(7, 6)}, ValueError, r"rotations has shape \[7, 6\]; it must be \[P, 8\]"),
        ({"rotations": torch.zeros(7, 8)}, ValueError, "sequence 0 reaches position 7; rotations has 7 positions"),
        ({"weights": []}, ValueError, "there are 0 weights; it must be 10 for each layer"),
        ({"window": -1}, ValueError, "window is -1; it must be >= 0"),
        ({"num_prefix": -2}, ValueError, "num_prefix is -2; it must be >= 0"),
        ({"num_kept": 3}, ValueError, "num_kept is 3; it must be 0 to the number of layers, 2"),
        ({"last_only": True, "offsets": torch.tensor([0, 0, 7])}, ValueError, "sequence 0 has no new token"),
        ({"last_only": True, "branches": True}, ValueError, "last_only is for sequences"),
    ],
)  # fmt: skip
def test_wrong_operands_are_named(changes: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        torch.ops.marquee.decoder_step(*_operands(**changes))


def test_wrong_weights_are_named() -> None:
    weights = list(_fused()._weights(L).tensors)
    weights[12] = weights[12][:-1]
    with pytest.raises(
        ValueError, match=r"weights\[12\], qkv, packed, has shape \[4, 24, 16\]; it must be \[5, 24, 16\]"
    ):
        torch.ops.marquee.decoder_step(*_operands(weights=weights))


@pytest.mark.parametrize(
    "changes",
    [{}, {"branches": True}, {"last_only": True, "num_kept": 2}, {"stored": [], "stored_offsets": None}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_opcheck(dtype: torch.dtype, changes: dict[str, Any]) -> None:
    operands = tuple(_operands(dtype, **changes))
    results = torch.library.opcheck(torch.ops.marquee.decoder_step.default, operands)
    assert set(results.values()) == {"SUCCESS"}


def test_both_kinds_of_offsets_give_the_same() -> None:
    operands = _operands()
    narrow = [value.int() if value is operands[1] or value is operands[6] else value for value in operands]
    outs = [torch.ops.marquee.decoder_step(*each) for each in (operands, narrow)]
    assert torch.equal(outs[0][0], outs[1][0]) and torch.equal(outs[0][1][0], outs[1][1][0])


def test_operands_are_not_written() -> None:
    operands = _operands()
    before = [each.clone() for each in (operands[0], *operands[3], *operands[5])]
    torch.ops.marquee.decoder_step(*operands)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (operands[0], *operands[3], *operands[5]), strict=True)
    )


def test_backward_says_that_there_is_none() -> None:
    x, *others = _operands()
    hidden, _ = torch.ops.marquee.decoder_step(x.requires_grad_(), *others)
    with pytest.raises(RuntimeError, match="derivative for marquee::decoder_step is not implemented"):
        hidden.sum().backward()


class _Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = _fused()

    def forward(
        self, x: Tensor, lengths: Tensor, stored: list[Tensor], stored_lengths: Tensor
    ) -> list[Tensor]:
        offsets, stored_offsets = (
            torch.cat((each.new_zeros(1), each.cumsum(0))) for each in (lengths, stored_lengths)
        )
        hidden, kept = decoder_step(
            x * 2,
            offsets,
            self.decoder._weights(L),
            Stored(stored, stored_offsets),
            last_only=True,
            num_kept=1,
        )
        return [hidden + 1, *kept]


def test_exports_with_any_number_of_tokens_and_sequences() -> None:
    def example(new: list[int], old: list[int]) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        stored = [torch.randn(sum(old), H, D // H) for _ in range(2 * L)]
        return torch.randn(sum(new), D), torch.tensor(new), stored, torch.tensor(old)

    T, B, S = (torch.export.Dim(name) for name in "TBS")
    shapes = {"x": {0: T}, "lengths": {0: B}, "stored": [{0: S}] * 2 * L, "stored_lengths": {0: B}}
    step = _Step()
    program = torch.export.export(step, example([3, 4], [5, 2]), dynamic_shapes=shapes)
    assert "marquee.decoder_step.default" in [str(node.target) for node in program.graph.nodes]
    for new, old in (([5], [3]), ([1, 2, 30, 2], [9, 0, 4, 1])):
        operands = example(new, old)
        pairs = zip(program.module()(*operands), step(*operands), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
