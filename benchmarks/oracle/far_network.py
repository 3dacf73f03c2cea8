"""Hosts behind wires of their own: packets pass through here, and may come late, or not at all.

Each host is a network namespace without a name, joined to this machine by two TUN devices whose
packets a thread carries over: real TCP of real kernels, and no traffic control is needed. Inside,
127.0.0.1 leads over the wire, so that services which listen on loopback are reached as ever.
Needs root; what is made goes away with this process, however it ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import heapq
import itertools
import os
import random
import selectors
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_PACKET_BYTES = 65_536
_LOOK_S = 0.2
_STOP_S = 10.0
# What is on its way on one wire; beyond it packets are dropped, as routers do.
MAX_PACKETS = 20_000
_PICKS = 50


@dataclass(slots=True)
class Way:
    """One direction of a wire. `loss` in [0, 1]: the share of packets that vanish."""

    loss: float = 0.0
    delay_s: float = 0.0
    cut: bool = False
    passed: int = 0
    dropped: int = 0


@dataclass(slots=True)
class Wire:
    """`up`: from the host to the services; `down`: from them to it."""

    name: str
    namespace: str
    up: Way = field(default_factory=Way)
    down: Way = field(default_factory=Way)

    def part(self, *, up: bool = True, down: bool = True) -> None:
        """Nothing passes any more, and nobody is told."""
        self.up.cut, self.down.cut = up, down

    def spoil(self, *, loss: float, delay_s: float) -> None:
        """Of both directions."""
        for way in (self.up, self.down):
            way.loss, way.delay_s = loss, delay_s

    def heal(self) -> None:
        self.part(up=False, down=False)
        self.spoil(loss=0.0, delay_s=0.0)


class FarNetwork:
    """A wire for each name; enter a host with `nsenter --net=<wire.namespace>`. Raises OSError or
    subprocess.CalledProcessError when this machine does not allow it."""

    def __init__(self, names: Iterable[str], *, seed: int = 0) -> None:
        self.wires: dict[str, Wire] = {}
        self._chance = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._descriptors: list[int] = []
        self._late: list[tuple[float, int, int, bytes]] = []
        self._order = itertools.count()
        self._closing = False
        self._thread = threading.Thread(target=self._carry, name="wires", daemon=True)
        try:
            for name in names:
                self._lay(name)
        except BaseException:
            self._release()
            raise
        self._thread.start()

    def close(self) -> None:
        """Idempotent. Processes inside keep their host, without a wire."""
        if not self._closing:
            self._closing = True
            self._thread.join(_STOP_S)
            self._release()

    def _release(self) -> None:
        self._selector.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    # --- laying -----------------------------------------------------------------------------

    def _lay(self, name: str) -> None:
        number = len(self.wires)
        device = f"mu{os.getpid() % 10_000_000}x{number}"
        here, there = _free_pair()
        near = _tun(device)
        self._descriptors.append(near)
        _ip("addr", "add", f"{here}/32", "peer", there, "dev", device)
        _ip("link", "set", device, "up")
        _answer_for_loopback(device)
        made: list[int | Exception] = []

        def inside() -> None:
            try:
                made.extend(_host(here, there))
            except Exception as error:  # noqa: BLE001 -- raised again by who waits
                made.append(error)

        # A thread of its own enters the new host, and ends there.
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        self._descriptors += [found for found in made if isinstance(found, int)]
        for found in made:
            if isinstance(found, Exception):
                raise found
        namespace, far = (found for found in made if isinstance(found, int))
        wire = Wire(name, f"/proc/{os.getpid()}/fd/{namespace}")
        self.wires[name] = wire
        self._selector.register(near, selectors.EVENT_READ, (wire.down, far))
        self._selector.register(far, selectors.EVENT_READ, (wire.up, near))

    # --- carrying ---------------------------------------------------------------------------

    def _carry(self) -> None:
        while not self._closing:
            wait_s = _LOOK_S
            if self._late:
                wait_s = min(wait_s, max(0.0, self._late[0][0] - time.monotonic()))
            for key, _ in self._selector.select(wait_s):
                way, sink = key.data
                with suppress(BlockingIOError):
                    for _ in range(_PICKS):
                        self._take(way, sink, os.read(key.fd, _PACKET_BYTES))
            now_s = time.monotonic()
            while self._late and self._late[0][0] <= now_s:
                _, _, sink, packet = heapq.heappop(self._late)
                _put(sink, packet)

    def _take(self, way: Way, sink: int, packet: bytes) -> None:
        lost = way.cut or (way.loss > 0.0 and self._chance.random() < way.loss)
        if lost or len(self._late) >= MAX_PACKETS * len(self.wires):
            way.dropped += 1
            return
        way.passed += 1
        if way.delay_s > 0.0:
            due_s = time.monotonic() + way.delay_s
            heapq.heappush(self._late, (due_s, next(self._order), sink, packet))
        else:
            _put(sink, packet)


@functools.cache
def why_no_network() -> str:
    """Why this machine cannot have such hosts; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not _TUN.exists():
        return f"{_TUN} does not exist"
    for program in ("ip", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        FarNetwork(["probe"]).close()
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode(errors="replace").strip()
        return f"no network namespace can be made: {said or error}"
    except OSError as error:
        return f"no network namespace can be made: {error}"
    return ""


def _host(here: str, there: str) -> tuple[int, int]:
    """In the calling thread: a new host, and the end of its wire; descriptors of both."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        far = _tun("wire")
    except OSError:
        os.close(namespace)
        raise
    _ip("addr", "add", f"{there}/32", "peer", here, "dev", "wire")
    for device in ("wire", "lo"):
        _ip("link", "set", device, "up")
    _answer_for_loopback("wire")
    _ip("addr", "del", "127.0.0.1/8", "dev", "lo")
    _ip("route", "add", "127.0.0.1/32", "dev", "wire", "src", there)
    return namespace, far


def _tun(device: str) -> int:
    descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        wish = struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, wish)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _answer_for_loopback(device: str) -> None:
    """Packets to and from 127.0.0.1 may pass by this device."""
    Path(f"/proc/sys/net/ipv4/conf/{device}/route_localnet").write_text("1")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=_STOP_S)


def _free_pair() -> tuple[str, str]:
    """Two addresses that nothing here uses."""
    used = subprocess.run(
        ["ip", "-4", "-o", "addr"], check=True, capture_output=True, text=True, timeout=_STOP_S
    ).stdout
    while True:
        word = random.randrange(1, 1 << 15)
        high, low = word >> 7, (word & 127) * 2
        here, there = f"10.213.{high}.{low}", f"10.213.{high}.{low + 1}"
        if f" {here}/" not in used and f" {there}/" not in used:
            return here, there


def _put(sink: int, packet: bytes) -> None:
    # A full device loses packets, as a network does; so does one that is gone.
    with suppress(OSError):
        os.write(sink, packet)
