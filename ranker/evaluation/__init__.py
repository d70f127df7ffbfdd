"""How well a ranker ranks."""
