"""The ranking model: a foundation decoder inside a TorchRec ranker, cut for serving at `ProfileState`."""

import foundation  # noqa: F401  # first, since it sets what torch reads as it is loaded
