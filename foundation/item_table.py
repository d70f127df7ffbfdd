"""Where the item id table lives: a setting, in a file of its own that doesn't wait for TorchRec to load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ItemTableConfig:
    """Where the item id table lives, and how it learns.

    Attributes:
        items: "dense": on every process, with the other weights; "sharded": rows spread over the processes, which
            needs the sampled softmax.
        item_learning_rate: of a sharded table's row-wise Adagrad (one number per row; FBGEMM has no fused Adam on
            CPUs) at its peak; it follows the schedule of the dense part.
    """

    items: Literal["dense", "sharded"] = "dense"
    item_learning_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.items not in ("dense", "sharded"):
            raise ValueError(f"items is {self.items!r}; it must be 'dense' or 'sharded'")
        if not self.item_learning_rate > 0:
            raise ValueError(f"item_learning_rate is {self.item_learning_rate}; it must be above 0")

    def check_softmax(self, softmax: str) -> None:
        """Refuses a sharded table under an objective that needs every row at once.

        Raises:
            ValueError: `softmax` isn't "sampled".
        """
        if self.items == "sharded" and softmax != "sampled":
            raise ValueError(
                f"objective.softmax is {softmax!r} and items is 'sharded'; a sharded table needs 'sampled'"
            )
