"""The `schema.toml` of the synthetic world: every kind of facet in every role, every kind of feature."""

SCHEMA_TOML = """\
name = "synthetic"

[columns]
profile_id = "profile_id"
item_id = "item_id"
timestamp = "timestamp"
title = "title"
launched_at = "launched_at"

[[facet]]
name = "holiday"
role = "when"
kind = "categorical"

[[facet]]
name = "canvas"
role = "where"
kind = "categorical"

[[facet]]
name = "device"
role = "where"
kind = "categorical"

[[facet]]
name = "home_row"
role = "where"
kind = "numeric"
boundaries = [1, 2, 4, 8]

[[facet]]
name = "position"
role = "what"
kind = "numeric"
boundaries = [1, 2, 4, 8, 16]

[[facet]]
name = "action"
role = "what"
kind = "categorical"

[[facet]]
name = "duration"
role = "what"
kind = "duration"
boundaries = [120, 300, 900, 1800, 3600, 7200]

[[facet]]
name = "audio_languages"
role = "what"
kind = "multi"
max_values = 2

[[item_feature]]
name = "entity_type"
kind = "categorical"

[[item_feature]]
name = "maturity"
kind = "categorical"

[[item_feature]]
name = "genres"
kind = "multi"
max_values = 2

[[item_feature]]
name = "languages"
kind = "multi"
max_values = 3

[[item_feature]]
name = "runtime_minutes"
kind = "numeric"
boundaries = [30, 60, 90, 120]

[[item_feature]]
name = "launched_at"
kind = "numeric"
vocabulary_size = 8

[[profile_feature]]
name = "country"
kind = "categorical"
vocabulary_size = 6

[[profile_feature]]
name = "kids"
kind = "categorical"

[[profile_feature]]
name = "age"
kind = "numeric"
boundaries = [13, 18, 25, 35, 45, 55, 65]

[[profile_feature]]
name = "languages"
kind = "multi"
max_values = 3

[[task]]
name = "watch"
kind = "column"
column = "label_watch"

[[task]]
name = "like"
kind = "column"
column = "label_like"

[[candidate_feature]]
name = "position"
kind = "categorical"
column = "positions"
training_only = true
at_serving = 0
"""
