"""The address guard: which URLs may be fetched at all.

A URL list from the web is hostile input, and a crawler stands inside somebody's network: `http://169.254.169.254/` hands out cloud
credentials, `http://10.0.0.1/` is somebody's printer. So only http and https are fetched, and only from hosts all of whose addresses are
globally reachable unicast ones. Being public is decided on the number, after every disguise is undone: notations (`urls.py`), IPv4 inside
IPv6 (mapped, compatible, 6to4, Teredo, ISATAP, NAT64), and cloud metadata services that sit on addresses that count as public.
Tests and intranets name the networks they mean (`allow`).

A decision before the connection is not enough: a redirect leads elsewhere, and a name may resolve differently the second time. So an engine
asks again at every hop, and connects only to addresses that it has judged itself (`names.py`; `img2dataset.py`, "the way out").
"""

import errno
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence

from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import Reason
from pipeline.crawl.files import OURS, no_file_to_open
from pipeline.crawl.urls import Address, Target, UrlRefused, parse

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# What the IANA IPv4 and IPv6 Special-Purpose Address Registries hold back from global unicast use. Written out because what `ipaddress`
# calls global differs between versions of Python: 192.0.0.0/24 and multicast pass in some of them.
_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private (RFC 1918), also the next two
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",  # shared by carriers (RFC 6598), and Alibaba's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent and metadata: public to every registry
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "192.0.0.0/24",  # IETF protocol assignments, and Oracle's metadata
        "192.0.2.0/24",  # documentation, also 198.51.100 and 203.0.113
        "192.88.99.0/24",  # 6to4 relays, withdrawn (RFC 7526)
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments (RFC 2928): Teredo, ORCHID, benchmarking
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: judged by the address inside, see `leads_to`
        "3fff::/20",  # documentation (RFC 9637)
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # RFC 5214: the middle of the interface identifier


def resolve(host: str) -> list[Address]:
    """All addresses of a host name, in the order of the system's resolver; raises OSError: socket.gaierror where it has none, one of
    `files.OURS` where it could open neither its files nor a socket, which it calls having none."""
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        if error.errno not in OURS and no_file_to_open():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
        raise
    found = dict.fromkeys(entry[4][0] for entry in entries)
    # A link-local answer carries its zone ("fe80::1%eth0"); the zone changes nothing here.
    return [ipaddress.ip_address(str(text).partition("%")[0]) for text in found]


class Guard:
    """Refuses URLs before they are fetched. Safe to share between threads; answers for a host are kept for the guard's life.

    `allow`: networks in CIDR notation that are fetched although they are not public, e.g. `127.0.0.0/8`. An address inside IPv6 is held
    against them as the IPv4 address it leads to. Raises InputError where one does not parse.
    `resolve`: who is asked for the addresses of a name.
    """

    def __init__(self, allow: Sequence[str] = (), resolve: Callable[[str], list[Address]] = resolve) -> None:
        self.resolve = resolve
        self._allow = parse_networks(allow)
        self._answers: dict[str, tuple[Reason, str] | None] = {}
        self._lock = threading.Lock()

    def refuse(self, url: str) -> tuple[Reason, str] | None:
        """None where `url` may be fetched; else the reason and a detail.

        Resolves the host (the system's resolver has no timeout of its own) and refuses it where any of its addresses is not public: a
        host that mixes the two is up to something. Raises an OSError of `files.OURS` for want of files.
        """
        try:
            return self.refuse_target(parse(url))
        except UrlRefused as refused:
            return refused.reason, refused.detail

    def refuse_target(self, target: Target) -> tuple[Reason, str] | None:
        """As `refuse`, for a URL that `urls.parse` has read."""
        if target.address is not None:
            return self.refuse_addresses([target.address])
        with self._lock:
            if target.host in self._answers:
                return self._answers[target.host]
        try:
            answer = self.refuse_addresses(self.resolve(target.host))
        except OSError as error:
            if error.errno in OURS:
                raise
            answer = (Reason.DNS, resolver_words(error))
        except UnicodeError:
            answer = (Reason.BAD_URL, "host name")
        with self._lock:
            # The first answer stands: two threads that asked at once must not disagree.
            return self._answers.setdefault(target.host, answer)

    def refuse_addresses(self, addresses: Iterable[Address]) -> tuple[Reason, str] | None:
        """The lowest address that is neither public nor allowed, as a refusal that names where it leads; the order given is no matter."""
        for address in sorted(addresses, key=lambda address: (address.version, int(address))):
            for judged in leads_to(address):
                if not is_public(judged) and not any(judged in network for network in self._allow):
                    return Reason.ADDRESS, str(judged)
        return None


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation; raises InputError naming the one that is wrong."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise InputError(
                f"crawl.allow_addresses: {text!r} is no network ({error}); write it as 127.0.0.0/8"
            ) from None
    return tuple(networks)


def is_public(address: Address) -> bool:
    """Whether an address is a globally reachable unicast one. An envelope counts as what it looks like: see `leads_to`."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    return address in _GLOBAL_UNICAST and not any(address in network for network in _REFUSED_V6)


def leads_to(address: Address) -> list[Address]:
    """The addresses that a packet to `address` may end at, all of which have to be public.

    For IPv4 inside IPv6 by translation or tunnel (mapped, compatible, NAT64, 6to4) that is the IPv4 address; for ISATAP it is the address
    itself and the IPv4 one. Teredo is left as it is: its network is refused whole.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    low = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.ipv4_mapped is not None or address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return [low]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return [address, low]
    return [address]


def resolver_words(error: OSError) -> str:
    """The resolver's error as words that do not depend on its version or language."""
    words = {
        socket.EAI_NONAME: "no such name",
        socket.EAI_AGAIN: "no answer",
        socket.EAI_NODATA: "no address",
        socket.EAI_FAIL: "failed",
    }
    return words.get(error.errno or 0, "failed")
