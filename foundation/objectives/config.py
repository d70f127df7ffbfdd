"""What a foundation model learns, as one configuration.

Defaults: the next item alone, by full softmax. Names of facets and features are checked where the tokenizer is
known (`labels.py`, `signal.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


def _require(condition: bool, name: str, value: object, right: str) -> None:
    if not condition:
        raise ValueError(f"objective.{name} is {value!r}; it must be {right}")


@dataclass(frozen=True)
class SignalConfig:
    """How much an event says, read from one of its *what* facets.

    The number of an event is `scale` times that of its facet's value: `values` where given, else the lower edge of
    the value's bucket (0 for the lowest bucket, which has none). `signal.py` turns numbers into weights.

    Attributes:
        facet: name of a single-valued *what* facet; empty for no signal.
        mode: "weight" takes the number as factor of the loss, and it must be at least 0; "reward" does the same,
            and a negative number counts as 0, so that nothing is learned from the event as a target; "mask" makes
            targets of exactly the events whose number is at least `threshold`.
        values: numbers of the facet's known values: of its buckets in order, or of `categories`.
        categories: for a categorical facet, the raw values that `values` belong to.
        scale: factor of every number.
        threshold: of "mask".
        missing: number of an event without a value, with one out of vocabulary, or with a category not listed.
    """

    facet: str = ""
    mode: Literal["weight", "reward", "mask"] = "weight"
    values: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    scale: float = 1.0
    threshold: float = 0.0
    missing: float = 0.0

    def __post_init__(self) -> None:
        _require(
            self.mode in ("weight", "reward", "mask"), "signal.mode", self.mode, "weight, reward or mask"
        )
        same = not self.categories or len(self.categories) == len(self.values)
        _require(same, "signal.categories", self.categories, f"as many as values, {len(self.values)}")
        distinct = len(set(self.categories)) == len(self.categories)
        _require(distinct, "signal.categories", self.categories, "different from each other")


@dataclass(frozen=True)
class IntentConfig:
    """An intent is predicted first, and its expected embedding helps to predict the item (`intent.py`).

    Attributes:
        label: what the intent is, named as heads are; a *when* or *where* facet of the event itself will do too.
            Empty: off.
        weight: of its cross entropy against the item's loss.
    """

    label: str = ""
    weight: float = 0.1

    def __post_init__(self) -> None:
        _require(self.weight >= 0, "intent.weight", self.weight, "at least 0")


@dataclass(frozen=True)
class MultiTokenConfig:
    """Each token predicts the set of the next events, weighted by how soon they come (`multi_token.py`).

    Attributes:
        horizon: how many events from the token's own on, at most; 0: off, 1: its own event alone.
        seconds: only events that begin so long after the token; 0: no limit.
        half_life: after it an event counts half; 0: no decay.
        half_life_unit: "seconds" after the token, or "events" after its own event.
        normalise: weights of a token's events sum to 1.
    """

    horizon: int = 0
    seconds: float = 0.0
    half_life: float = 0.0
    half_life_unit: Literal["seconds", "events"] = "seconds"
    normalise: bool = False

    def __post_init__(self) -> None:
        for name in ("horizon", "seconds", "half_life"):
            _require(getattr(self, name) >= 0, f"multi_token.{name}", getattr(self, name), "at least 0")
        unit = self.half_life_unit
        _require(unit in ("seconds", "events"), "multi_token.half_life_unit", unit, "seconds or events")


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned, and how.

    Attributes:
        softmax: "full" over the whole catalogue, or "sampled" over `num_negatives` negatives.
        negatives: of the sampled softmax: "uniform" over the catalogue, "in_batch" from the step's other targets,
            or "mixed", half of each.
        num_negatives: negatives per step of the sampled softmax, shared by the step's tokens.
        log_q: corrects the negatives' logits for how often they are drawn.
        mask_profile: items of a profile's training events are no negatives of its tokens.
        masked_share: of the items that a step treats as never seen; negative: as many as the data's newest tenth
            of events meets (`masking.cold_share`).
        masked_context: of the tokens that are shown without what is known as their event begins.
        layer_weight: of the mean loss of the layers below the last one; 0: the last one alone learns.
        heads: what else each token predicts (see `labels.py`): "rating" and other *what* facets of its event,
            "genres" and other features of its item, "next.device" or "next.gap" of the request after it.
        head_weight: of the heads' losses against the item's.
    """

    softmax: Literal["full", "sampled"] = "full"
    num_negatives: int = 512
    masked_share: float = -1.0
    masked_context: float = 0.1
    negatives: Literal["uniform", "in_batch", "mixed"] = "uniform"
    log_q: bool = False
    mask_profile: bool = True
    layer_weight: float = 0.0
    heads: tuple[str, ...] = ()
    head_weight: float = 0.005
    intent: IntentConfig = field(default_factory=IntentConfig)
    signal: SignalConfig = field(default_factory=SignalConfig)
    multi_token: MultiTokenConfig = field(default_factory=MultiTokenConfig)

    def __post_init__(self) -> None:
        _require(self.softmax in ("full", "sampled"), "softmax", self.softmax, "'full' or 'sampled'")
        kinds = ("uniform", "in_batch", "mixed")
        _require(self.negatives in kinds, "negatives", self.negatives, "uniform, in_batch or mixed")
        _require(self.num_negatives >= 1, "num_negatives", self.num_negatives, "at least 1")
        _require(self.masked_share < 1, "masked_share", self.masked_share, "below 1")
        _require(0 <= self.masked_context < 1, "masked_context", self.masked_context, "in [0, 1)")
        for name in ("layer_weight", "head_weight"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require(len(set(self.heads)) == len(self.heads), "heads", self.heads, "different from each other")
        full = self.softmax == "full" or not self.multi_token.horizon
        _require(full, "softmax", self.softmax, "'full' where multi_token.horizon is above 0")
