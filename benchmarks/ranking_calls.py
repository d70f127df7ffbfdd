"""A workload's requests as a caller of the served model writes them."""

from __future__ import annotations

from benchmarks.held_out_requests import HeldOutRequests
from serving.rank_request import History, RankRequest


def rank_request(workload: HeldOutRequests, number: int) -> RankRequest:
    """Request `number` of a workload, for `serving.client`."""
    histories = workload.histories(number)
    return RankRequest(
        timestamp=int(histories.request_timestamp[0]),
        candidates=workload.candidates(number),
        history=History(histories.item_id, histories.timestamp, histories.facets),
        context={name: raw[0] for name, raw in histories.request_facets.items()},
        profile={name: raw[0] for name, raw in histories.profile_features.items()},
        num_events_before=int(histories.num_events_before[0]),
    )
