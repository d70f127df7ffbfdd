"""The `schema.toml` of MovieLens, and the terms under which its data may be used."""

TERMS = """\
The MovieLens data (https://grouplens.org/datasets/movielens/) belong to GroupLens Research at the University
of Minnesota. They may be used for research, if you
  - acknowledge the data in what you publish,
  - don't state or imply that the University of Minnesota or GroupLens endorses you,
  - don't redistribute the data without separate permission,
  - ask a faculty member of GroupLens first for any commercial or revenue-bearing use.
Please cite: F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM
Transactions on Interactive Intelligent Systems (TiiS) 5, 4, Article 19 (December 2015), 19 pages.
https://doi.org/10.1145/2827872"""

SCHEMA_TOML = """\
name = "movielens-{size}"

[columns]
profile_id = "profile_id"
item_id = "item_id"
timestamp = "timestamp"
title = "title"

[[facet]]
name = "rating"
role = "what"
kind = "numeric"
boundaries = [1.5, 2.5, 3.5, 4.5]

[[item_feature]]
name = "genres"
kind = "multi"
max_values = 6

[[item_feature]]
name = "year"
kind = "numeric"
boundaries = [
  1930, 1940, 1950, 1955, 1960, 1965, 1970, 1975, 1980, 1985, 1990, 1992, 1994, 1996, 1998, 1999, 2000,
]

[[profile_feature]]
name = "gender"
kind = "categorical"

[[profile_feature]]
name = "age"
kind = "categorical"

[[profile_feature]]
name = "occupation"
kind = "categorical"

[[task]]
name = "watch"
kind = "interaction"

[[task]]
name = "like"
kind = "threshold"
facet = "rating"
at_least = 4
"""
