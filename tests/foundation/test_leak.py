"""No event leaks into its own prediction: its outcome moves no output at or before its own position, not by one bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foundation.layout import layout
from foundation.tokenizer import history_tokens

NUM_EVENTS = 12


@pytest.fixture
def raw_history(synthetic_dataset):
    """Item ids, timestamps and facets of the first events of one profile."""
    events = synthetic_dataset.events
    first = int(events.offsets[np.flatnonzero(np.diff(events.offsets) > NUM_EVENTS)[0]])
    rows = slice(first, first + NUM_EVENTS + 1)
    return (
        events.item_id[rows],
        events.timestamp[rows],
        {n: column[rows] for n, column in events.facets.items()},
    )


def _outputs(model, tokenizer, raw):
    """Hidden state and logits of every token; the last event serves as the request."""
    item_id, timestamp, facets = raw
    history = tokenizer.event_ids(
        item_id[:-1], timestamp[:-1], {n: column[:-1] for n, column in facets.items()}
    )
    request = tokenizer.request_ids(timestamp[-1:], {name: column[-1:] for name, column in facets.items()})
    tokens = history_tokens(tokenizer, history, np.array([0, NUM_EVENTS]), request)
    batch = layout(torch.from_numpy(tokens.lengths))
    with torch.no_grad():
        item_vectors = model.item_vectors()
        hidden = model(
            torch.from_numpy(tokens.facet_ids), torch.from_numpy(tokens.item_ids), batch, item_vectors
        )
        return hidden, model.logits(hidden, item_vectors.vectors)


def _with_another_outcome(raw, event, part, tokenizer):
    item_id, timestamp, facets = (
        raw[0].copy(),
        raw[1],
        {name: column.copy() for name, column in raw[2].items()},
    )
    if part == "item":
        others = tokenizer.vocabularies.items.keys
        item_id[event] = others[others != item_id[event]][0]
        return item_id, timestamp, facets
    column = facets[part]
    if np.issubdtype(column.dtype, np.floating):
        column[event] = 0 if column[event] > 1 else 1000  # the first bucket or the last: a step of several
    else:
        known = tokenizer.vocabularies.facets[part].keys
        column[event] = known[~np.isin(known, column[event])][0]
    return item_id, timestamp, facets


@pytest.mark.parametrize("part", ["item", "position", "action", "duration", "audio_languages"])
def test_the_what_of_an_event_moves_nothing_up_to_its_own_position(
    small_model, synthetic_tokenizer, raw_history, part
):
    reference = _outputs(small_model, synthetic_tokenizer, raw_history)
    for event in range(NUM_EVENTS):
        raw = _with_another_outcome(raw_history, event, part, synthetic_tokenizer)
        changed = _outputs(small_model, synthetic_tokenizer, raw)
        for before, after in zip(reference, changed, strict=True):
            difference = (before - after).nan_to_num().abs().amax(dim=1)
            assert difference[: event + 1].max() == 0
            assert difference[event + 1] > 1e-4


def test_the_parts_above_are_all_there_are(synthetic_dataset):
    what = {facet.name for facet in synthetic_dataset.schema.facets_of("what")}
    assert what == {"position", "action", "duration", "audio_languages"}


def test_the_when_of_the_request_moves_the_last_output_alone(small_model, synthetic_tokenizer, raw_history):
    item_id, timestamp, facets = raw_history
    later = timestamp.copy()
    later[-1] += 5 * 3600
    before = _outputs(small_model, synthetic_tokenizer, raw_history)[0]
    after = _outputs(small_model, synthetic_tokenizer, (item_id, later, facets))[0]
    difference = (before - after).abs().amax(dim=1)
    assert difference[:-1].max() == 0
    assert difference[-1] > 1e-4


def test_appending_an_event_moves_only_what_comes_after(small_model, synthetic_tokenizer, raw_history):
    """The history with its last event dropped, seen at that event's time: the outputs before agree to rounding."""
    item_id, timestamp, facets = raw_history
    long = _outputs(small_model.double(), synthetic_tokenizer, raw_history)[0]
    history = synthetic_tokenizer.event_ids(
        item_id[:-2], timestamp[:-2], {name: column[:-2] for name, column in facets.items()}
    )
    request = synthetic_tokenizer.request_ids(
        timestamp[-1:], {name: column[-1:] for name, column in facets.items()}
    )
    tokens = history_tokens(synthetic_tokenizer, history, np.array([0, NUM_EVENTS - 1]), request)
    with torch.no_grad():
        short = small_model(
            torch.from_numpy(tokens.facet_ids),
            torch.from_numpy(tokens.item_ids),
            layout(torch.from_numpy(tokens.lengths)),
            small_model.item_vectors(),
        )
    torch.testing.assert_close(short[:-1], long[: NUM_EVENTS - 1], rtol=0, atol=1e-10)
    assert (short[-1] - long[NUM_EVENTS - 1]).abs().max() > 1e-4
