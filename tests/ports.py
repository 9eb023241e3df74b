"""Ports for servers that are told theirs as a number, and may take long until they listen."""

import contextlib
import random
import socket
from pathlib import Path

_FIRST = 20_000
_DICE = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """A port on which nobody listens, and which the system gives to nobody who asks for any: those begin behind it.

    Of one that the system had chosen itself, another process could be given the same before the server is there, which takes a launcher
    that imports torch half a minute. No process gets one twice here.
    """
    for _ in range(1000):
        port = _DICE.randrange(_FIRST, max(_FIRST + 1000, _first_of_the_system()))
        if port in _given:
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            _given.add(port)
            return port
    raise OSError(f"1,000 ports from {_FIRST} on are in use")


def _first_of_the_system() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:  # not Linux: what IANA says
        return 49_152
