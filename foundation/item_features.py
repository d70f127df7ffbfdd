"""What is known of every item before anything is learned: metadata, training counts, age and content.

Shapes: I item rows (0 out of vocabulary, 1 start marker, then the catalogue), M metadata columns.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.dataset import Catalogue
from foundation.item_tower import ItemFacts
from foundation.joint_table import PADDING_ROW, JointTable
from foundation.schema import Schema
from foundation.tokenizer import Tokenizer
from foundation.vocabulary import FIRST_KNOWN, START, Vocabularies


def item_facts(tokenizer: Tokenizer, catalogue: Catalogue) -> ItemFacts:
    """What the item tower reads of a catalogue, as of the last training event."""
    vocabularies = tokenizer.vocabularies
    rows = catalogue_feature_rows(tokenizer.schema, vocabularies, catalogue)
    counts = vocabularies.item_counts.copy()
    counts[START] = 1  # a marker with an embedding of its own, not an item that was never seen
    embedding = catalogue.content_embedding
    content = np.zeros((len(rows), 0 if embedding is None else embedding.shape[1]), dtype=np.float32)
    if embedding is not None:
        content[FIRST_KNOWN:] = embedding
    return ItemFacts(
        feature_rows=torch.from_numpy(rows),
        counts=torch.from_numpy(counts),
        age_rows=torch.from_numpy(tokenizer.age_rows(vocabularies.last_timestamp)),
        content=torch.from_numpy(content),
    )


def num_item_feature_rows(schema: Schema, vocabularies: Vocabularies) -> int:
    """Rows of the joint table of all item features, its padding row 0 included."""
    return _joint_table(schema, vocabularies).num_rows


def catalogue_feature_rows(
    schema: Schema, vocabularies: Vocabularies, catalogue: Catalogue
) -> NDArray[np.int64]:
    """Rows of the joint item feature table for every item, `[I, M]`.

    A multi-valued feature takes `max_values` columns; 0 stands for "no value". The out-of-vocabulary item and the
    start marker have no values. Where the schema declares no item feature, M = 1 and no item has a value.
    """
    table = _joint_table(schema, vocabularies)
    columns: list[NDArray[np.int64]] = []
    for feature in schema.item_features:
        ids = vocabularies.item_features[feature.name].lookup(catalogue.features[feature.name])
        columns.append(table.rows(feature.name, ids))
    if not columns:
        columns.append(np.full(len(catalogue.item_id), PADDING_ROW, dtype=np.int64))
    return np.pad(np.column_stack(columns), ((FIRST_KNOWN, 0), (0, 0)), constant_values=PADDING_ROW)


def _joint_table(schema: Schema, vocabularies: Vocabularies) -> JointTable:
    return JointTable({f.name: vocabularies.item_features[f.name].num_rows for f in schema.item_features})
