"""What a policy server counts, in the text that Prometheus reads (exposition format 0.0.4)."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Histogram:
    """How many durations there were up to each bound."""

    def __init__(self) -> None:
        self.sum_s = 0.0
        self._counts = [0] * (len(BOUNDS_S) + 1)

    def observe(self, duration_s: float) -> None:
        """Count one."""
        self.sum_s += duration_s
        self._counts[bisect_left(BOUNDS_S, duration_s)] += 1

    def lines(self, name: str) -> Iterator[str]:
        """Its samples."""
        totals = list(accumulate(self._counts))
        for bound, total in zip((*BOUNDS_S, "+Inf"), totals, strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum_s:.6f}"
        yield f"{name}_count {totals[-1]}"


@dataclass
class Metrics:
    """Counts and times since the server began.

    Attributes:
        requests: by outcome; ``refused`` for what the client did wrong, ``failed`` for what the policy did,
            ``abandoned`` by a client that went away.
        turned_away: connections refused, by reason.
        clients: connected now.
        waiting: requests being computed or waiting for it.
        inference: time in the policy; ``request``: from a request's arrival to its reply.
    """

    requests: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("answered", "refused", "failed", "abandoned"), 0)
    )
    turned_away: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("api_key", "full"), 0))
    clients: int = 0
    waiting: int = 0
    inference: Histogram = field(default_factory=Histogram)
    request: Histogram = field(default_factory=Histogram)

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from _head("pi0_requests_total", "counter", "Requests by outcome.")
        yield from (f'pi0_requests_total{{outcome="{key}"}} {value}' for key, value in self.requests.items())
        yield from _head("pi0_refused_connections_total", "counter", "Connections refused by reason.")
        yield from (f'pi0_refused_connections_total{{reason="{key}"}} {n}' for key, n in self.turned_away.items())
        yield from _head("pi0_clients", "gauge", "Clients connected.")
        yield f"pi0_clients {self.clients}"
        yield from _head("pi0_requests_waiting", "gauge", "Requests being computed or waiting for it.")
        yield f"pi0_requests_waiting {self.waiting}"
        yield from _head("pi0_inference_seconds", "histogram", "Time in the policy.")
        yield from self.inference.lines("pi0_inference_seconds")
        yield from _head("pi0_request_seconds", "histogram", "From a request's arrival to its reply.")
        yield from self.request.lines("pi0_request_seconds")


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
