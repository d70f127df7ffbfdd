"""Decoders of Hugging Face transformers: any causal model that takes `inputs_embeds` and caches keys and values.

Shapes: B sequences, S longest sequence, N branches of a sequence, D model width.

Needs the package `transformers` (requirements/hugging_face.txt), which serving does not: it runs the exported graph.
Word embeddings are dropped: tokens come from the foundation model's own tables.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, DynamicCache

from foundation.errors import DataError
from foundation.foreign.config import check_sizes
from foundation.foreign.protocol import ForeignDecoder, ForeignPass, LayerMemory

_NO_WORDS = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def build(settings: dict[str, Any], width: int, num_layers: int) -> HuggingFaceDecoder:
    """The entry point `hugging_face`.

    Args:
        settings: a transformers config.json, `model_type` among it; `weights` may name a folder with a saved model of
            these settings to start from, else weights are drawn anew. They are held in float32, however saved.
        width, num_layers: what it must have.

    Raises:
        DataError: settings make no model or one of other sizes, or weights are of another.
    """
    settings = dict(settings)
    weights = settings.pop("weights", None)
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise DataError(
            'foreign.settings has no model_type; give a transformers config.json, as {"model_type": "llama", ...}'
        )
    try:
        config = AutoConfig.for_model(model_type, **{**settings, **_NO_WORDS})
        check_sizes(width, num_layers, config.hidden_size, config.num_hidden_layers)
        decoder = HuggingFaceDecoder(AutoModel.from_config(config, dtype=torch.float32))
        if weights is not None:
            saved = HuggingFaceDecoder(AutoModel.from_pretrained(weights, local_files_only=True))
            # A release keeps settings alone: a model made of the folder's own would not come back from it.
            decoder.load_state_dict(saved.state_dict())
    except DataError:
        raise
    except (ValueError, OSError, TypeError) as error:
        raise DataError(f"foreign: transformers makes no model of these settings: {error}") from None
    except RuntimeError as error:
        raise DataError(f"foreign.weights: {weights!r} is no model of foreign.settings: {error}") from None
    return decoder


class HuggingFaceDecoder(ForeignDecoder):
    """A decoder of transformers.

    Args:
        model: without a language model's head; changed in place.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.width = model.config.hidden_size  # type: ignore[union-attr]
        self.num_layers = model.config.num_hidden_layers  # type: ignore[union-attr]
        self.max_positions = getattr(model.config, "max_position_embeddings", None)
        model.set_input_embeddings(nn.Identity())  # type: ignore[operator]
        self.model = model

    def forward(self, tokens_BSD: Tensor) -> ForeignPass:
        """See `ForeignDecoder`."""
        cache = DynamicCache()
        found = self.model(
            inputs_embeds=tokens_BSD, past_key_values=cache, use_cache=True, output_hidden_states=True
        )
        layers: list[Any] = cache.layers
        memory = tuple(LayerMemory(layer.keys, layer.values) for layer in layers)
        # The first are the tokens themselves; the last are under the final norm.
        return ForeignPass(tuple(found.hidden_states[1:]), memory)

    def branch(self, tokens_BND: Tensor, memory: tuple[LayerMemory, ...], lengths_B: Tensor) -> Tensor:
        """See `ForeignDecoder`: the branches are a second chunk of each sequence, told apart by the mask."""
        cache = DynamicCache()
        for number, layer in enumerate(memory):
            cache.update(layer.keys_BHSK, layer.values_BHSK, number)
        num_branches, longest = tokens_BND.shape[1], memory[0].keys_BHSK.shape[2]
        before = torch.arange(longest, device=tokens_BND.device) < lengths_B[:, None]
        itself = torch.eye(num_branches, dtype=torch.bool, device=tokens_BND.device)
        visible = torch.cat(
            (
                before[:, None].expand(-1, num_branches, -1),
                itself.expand(tokens_BND.shape[0], -1, -1),
            ),
            dim=2,
        )
        # Of the tokens' type: a boolean mask is not understood by every model.
        mask = torch.zeros(visible.shape, dtype=tokens_BND.dtype, device=tokens_BND.device)
        mask = mask.masked_fill(~visible, torch.finfo(tokens_BND.dtype).min)
        found = self.model(
            inputs_embeds=tokens_BND,
            past_key_values=cache,
            attention_mask=mask[:, None],
            position_ids=lengths_B[:, None].expand(-1, num_branches),
            use_cache=True,
        )
        return found.last_hidden_state
