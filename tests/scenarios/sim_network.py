"""The network: streams as TCP shows them, unary calls whose requests and answers get lost,
partitions in one direction or both."""

from __future__ import annotations

from collections.abc import Callable

from tests.scenarios.sim_kernel import Act, Kernel, Part

# gRPC's keepalive: a ping after 10 s, an answer within 5 s.
KEEPALIVE_MS = 15_000
EVERYBODY = "*"


class Network:
    """Who can reach whom. A partition has an end; what was sent on a stream meanwhile comes late,
    unless the stream was given up by then."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._until_ms: dict[tuple[str, str], int] = {}

    def part(self, source: str, target: str, ms: int) -> None:
        """Nothing passes from `source` to `target` for a while."""
        self.kernel.say("network", "nothing passes from", source, "to", target, "for", ms, "ms")
        self._until_ms[source, target] = self.kernel.now_ms + ms

    def split(self, one: str, other: str, ms: int, ways: int) -> None:
        """`ways`: 1 = nothing passes from `one` to `other`, 2 = nor back, 3 = only not back."""
        kind = "two-way" if ways == 2 else "one-way"
        self.kernel.tally[f"{kind} partition"] += 1
        if ways != 3:
            self.part(one, other, ms)
        if ways != 1:
            self.part(other, one, ms)

    def passes_at_ms(self, source: Part, target: Part) -> int:
        """When something that is sent now gets onto the way."""
        now_ms = self.kernel.now_ms
        if not self._until_ms or source.host == target.host:
            return now_ms
        find = self._until_ms.get
        return max(
            now_ms,
            find((source.host, target.host), 0),
            find((source.host, EVERYBODY), 0),
            find((EVERYBODY, target.host), 0),
        )

    def passes(self, source: Part, target: Part) -> bool:
        return self.passes_at_ms(source, target) <= self.kernel.now_ms


class Link:
    """A stream between two parts: in order, until it breaks; then nothing more arrives, and each
    end notices in its own time."""

    def __init__(self, network: Network, one: Part, other: Part) -> None:
        self.open = True
        self._network = network
        self._kernel = network.kernel
        self._ends = (one, other)
        self._last_ms = {one: 0.0, other: 0.0}
        for end in self._ends:
            end.streams = [link for link in end.streams if link.open] + [self]

    def arrives_ms(self, to: Part) -> float:
        """When the last message to this end arrives."""
        return self._last_ms[to]

    def send(self, to: Part, act: Act) -> None:
        kernel = self._kernel
        if not self.open:
            return
        if kernel.is_lost():
            kernel.tally["link lost a message"] += 1
            self.cut("the network lost it")
            return
        source = self._ends[0] if to is self._ends[1] else self._ends[1]
        passes_ms = self._network.passes_at_ms(source, to)
        stuck_ms = max(passes_ms, to.frozen_until_ms) - kernel.now_ms
        if stuck_ms > KEEPALIVE_MS:
            kernel.at(KEEPALIVE_MS, lambda: self.cut("it was silent for too long"))
        at_ms = max(self._last_ms[to], passes_ms + kernel.delay_ms())
        self._last_ms[to] = at_ms
        kernel.at(at_ms - kernel.now_ms, lambda: self._deliver(to, act))

    def _deliver(self, to: Part, act: Act) -> None:
        if self.open:
            to.do(act)

    def cut(self, why: str, by: Part | None = None) -> None:
        """`by` knows at once, and the others as soon as its farewell reaches them."""
        if not self.open:
            return
        self.open = False
        self._kernel.say("link", " - ".join(end.name for end in self._ends), "is cut:", why)
        for end in self._ends:
            notice_ms = self._kernel.rng.choice((5, 500, KEEPALIVE_MS))
            if end is by:
                notice_ms = 0
            elif by is not None:
                notice_ms = 5 if self._network.passes(by, end) else KEEPALIVE_MS
            end.later(notice_ms, lambda end=end: end.on_cut(self))  # type: ignore[misc]


class Server(Part):
    """Something that answers unary calls. While it is away requests fail and answers are lost."""

    def __init__(self, kernel: Kernel, network: Network, name: str) -> None:
        super().__init__(kernel, name)
        self.network = network
        self.away_until_ms = 0
        # Each request takes this much longer until then.
        self._slow = (0, 0)

    @property
    def away(self) -> bool:
        return self.kernel.now_ms < self.away_until_ms

    def go_away(self, ms: int) -> None:
        self.say("is away for", ms, "ms")
        self.away_until_ms = self.kernel.now_ms + ms
        self.kernel.at(ms, self.come_back)

    def come_back(self) -> None:
        """It answers again."""

    def slow_down(self, each_ms: int, ms: int) -> None:
        """For a while each request takes up to `each_ms`."""
        self.say("takes up to", each_ms, "ms for a request, for", ms, "ms")
        self._slow = (each_ms, self.kernel.now_ms + ms)

    def takes_ms(self) -> float:
        """How long the next request takes."""
        each_ms, until_ms = self._slow
        return each_ms * self.kernel.rng.random() if self.kernel.now_ms < until_ms else 0.0


class Lane:
    """Requests of one connection: they arrive in the order in which they were sent."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._last_ms = 0.0

    def in_order(self, delay_ms: float) -> float:
        now_ms = self._kernel.now_ms
        self._last_ms = max(self._last_ms, now_ms + delay_ms)
        return self._last_ms - now_ms


def call(
    client: Part,
    server: Server,
    serve: Callable[[], object],
    answered: Callable[[object], None],
    *,
    timeout_ms: int = 2_000,
    repeat: bool = True,
    lane: Lane | None = None,
) -> None:
    """A call that is repeated until an answer comes; what was sent before may still be carried
    out, at any time, and its answer is nobody's. `repeat` False: it is sent once, and an answer
    that comes after `timeout_ms` is nobody's. What is sent on a `lane` is not overtaken by what is
    sent on it later."""
    kernel, network = client.kernel, server.network
    began_ms = kernel.now_ms
    done = False

    def is_late() -> bool:
        return not repeat and kernel.now_ms - began_ms > timeout_ms

    def take(answer: object) -> None:
        nonlocal done
        if not done and not is_late():
            done = True
            answered(answer)

    def arrive() -> None:
        # A server that is frozen carries out at its thaw what came meanwhile; what nobody waits
        # for any more only if it was at it.
        frozen = server.frozen
        server.do(lambda: carry_out() if not (frozen and is_late()) or at_it() else None)

    def at_it() -> bool:
        return kernel.rng.random() < 0.3

    def carry_out() -> None:
        if server.away:
            return
        answer = serve()
        if kernel.is_lost() or not network.passes(server, client):
            kernel.tally["reply lost after it was carried out"] += 1
        else:
            client.later(kernel.delay_ms(), lambda: take(answer))

    def send() -> None:
        if done:
            return
        for _ in range(1 + (repeat and kernel.is_repeated())):
            if not kernel.is_lost() and network.passes(client, server):
                delay_ms = kernel.delay_ms() + server.takes_ms()
                kernel.at(delay_ms if lane is None else lane.in_order(delay_ms), arrive)
        if repeat:
            client.later(timeout_ms, send)

    send()
