"""The served model's counters on Triton Server's metrics endpoint."""

from __future__ import annotations

from typing import Any

REQUESTS, PROFILES = "marquee_requests_total", "marquee_profiles_encoded_total"
CANDIDATES, ERRORS = "marquee_candidates_scored_total", "marquee_errors_total"
_DESCRIPTIONS = {
    REQUESTS: "Ranking requests answered; one call may carry several.",
    PROFILES: "Runs of the profile graph, counted by request.",
    CANDIDATES: "Candidates scored.",
    ERRORS: "Calls that the model answered with an error.",
}


class RequestCounters:
    """Four counters, labelled with the model's name and version.

    Args:
        metric_family: `pb_utils.MetricFamily`, which exists inside the Python backend only.
        model: name of the served model.
        version: of the served model.
    """

    def __init__(self, metric_family: Any, model: str, version: str) -> None:
        # The families must be kept: a counter whose family is gone disappears from the endpoint.
        self._families = {
            name: metric_family(name=name, description=text, kind=metric_family.COUNTER)
            for name, text in _DESCRIPTIONS.items()
        }
        labels = {"model": model, "version": version}
        self._counters = {name: family.Metric(labels=labels) for name, family in self._families.items()}

    def count_answer(self, num_requests: int, num_candidates: int) -> None:
        """Count one answered call."""
        self._counters[REQUESTS].increment(num_requests)
        self._counters[PROFILES].increment(num_requests)
        self._counters[CANDIDATES].increment(num_candidates)

    def count_error(self) -> None:
        """Count one call that ended in an error."""
        self._counters[ERRORS].increment(1)


def num_handled(page: str) -> int:
    """Requests answered plus calls refused, over all models of a metrics page: it moves while a model works."""
    samples = (line for line in page.splitlines() if line.startswith((f"{REQUESTS}{{", f"{ERRORS}{{")))
    return sum(int(float(line.split()[-1])) for line in samples)
