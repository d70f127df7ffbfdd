"""Dense features: numbers through an MLP of their own, or as they are.

Shapes: R rows (requests, items or candidates), X dense columns.
"""

from __future__ import annotations

from torch import Tensor, nn

from ranker.arches.mlp import mlp


class DenseArch(nn.Module):
    """`[R, X]` numbers to `[R, width]`: the bottom MLP of DLRM (arXiv 1906.00091).

    Args:
        num_features: X; of none, none come out, whatever the widths.
        hidden_widths: of its layers, the last being the width that comes out; none: the numbers stay as they are.
    """

    def __init__(self, num_features: int, hidden_widths: tuple[int, ...] = ()) -> None:
        super().__init__()
        widths = (num_features, *hidden_widths) if num_features else (0,)
        self.mlp = mlp(widths)
        self.width = widths[-1]

    def forward(self, dense: Tensor) -> Tensor:
        """`[R, X]` to `[R, width]`."""
        return self.mlp(dense)
