"""What the libraries under sharded training say of each other, and users can't act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# TorchRec's planner on defaults it was given on purpose; torch's tracer on a function that TorchRec calls.
_LOGGERS = ("torchrec", "torch.fx._symbolic_trace")
# TorchRec 1.8.0 calls what torch 2.13 is about to rename or to drop.
_WARNINGS = ("`broadcast_buffers` is deprecated", "Please use DTensor instead")


@contextmanager
def library_notices_off() -> Iterator[None]:
    """Hides these notices, and no other, as long as the block runs."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=FutureWarning)
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
