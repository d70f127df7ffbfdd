"""Where data, caches and runs live."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder `$MARQUEE_HOME`, or `.marquee` in the working directory; it may not exist yet."""
    return Path(os.environ.get("MARQUEE_HOME") or ".marquee")
