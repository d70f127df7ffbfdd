"""The exported ranker as the server runs it: wire arrays in, logits out. It knows nothing of Triton Server.

Shapes: C candidates over the batch, N tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

from ranker.features.files import load_features
from serving.candidate_arguments import candidate_arguments
from serving.contract import Contract
from serving.kernels import operators  # noqa: F401  # registers what the graphs call
from serving.merging import check_merged
from serving.model_folder import (
    CANDIDATE_PROGRAM,
    CANDIDATE_WEIGHTS,
    CONTRACT,
    PROFILE_PROGRAM,
    PROFILE_WEIGHTS,
)
from serving.programs import load_program, load_weights
from serving.wire import model_inputs


class ServedRanker:
    """The two programs of a model folder behind the contract.

    Args:
        folder: see `serving.model_folder`; its hashes are checked by whoever didn't write it (`check_files`).

    Attributes:
        contract: what `rank` takes.
    """

    def __init__(self, folder: Path) -> None:
        self.contract = Contract.from_json((folder / CONTRACT).read_text(encoding="utf-8"))
        self._features = load_features(folder)
        self._profile = load_program(folder / PROFILE_PROGRAM, load_weights(folder / PROFILE_WEIGHTS))
        self._candidate = load_program(folder / CANDIDATE_PROGRAM, load_weights(folder / CANDIDATE_WEIGHTS))

    @torch.inference_mode()
    def rank(self, arrays: Mapping[str, NDArray]) -> Tensor:
        """Logits `[C, N]` of one call: the profile graph once per request, the candidate graph over all.

        Raises:
            RequestError: the arrays break the contract.
        """
        self.contract.validate(arrays)
        if self.contract.merge_adjacent:
            check_merged(arrays["history.item_id"], arrays["history_lengths"])
        inputs, candidates = model_inputs(self.contract, self._features, arrays)
        return self._candidate(*candidate_arguments(self._profile(*inputs), inputs, candidates))[0]
