"""Every operator that an exported graph may call: importing this registers them all."""

from __future__ import annotations

from serving.kernels.bags import ops as bags
from serving.kernels.candidates import ops as candidates
from serving.kernels.decoder import ops as decoder
from serving.kernels.interaction import ops as interaction
from serving.kernels.linear import ops as linear

__all__ = ["bags", "candidates", "decoder", "interaction", "linear"]
