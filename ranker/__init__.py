"""The ranking model: a foundation decoder inside a TorchRec ranker, cut for serving at `ProfileState`."""
