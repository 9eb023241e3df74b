"""One reading of a URL, used both by the guard and on the wire.

An address guard is worth nothing when it parses a URL differently from the library that connects. So a URL is read once, here, by
the rules browsers follow for hosts and paths (WHATWG URL Standard: percent-decoding of hosts, UTS 46 without transitional processing,
IPv4 in decimal, octal and hexadecimal, dot segments removed), and the engines are given the spelling rebuilt from the parts, never the
original text. What browsers repair by guessing (`http:host`, missing slashes, backslashes in front of the path) and what nobody needs for
a public picture (user names and passwords) is refused instead; a backslash in a path is a letter like any other, and is encoded.
The rebuilt spelling also fetches what img2dataset alone fails on: paths with spaces or with non-ASCII letters.
"""

import dataclasses
import functools
import ipaddress
import re
import urllib.parse

import idna
import publicsuffixlist

from pipeline.contracts.schema import Reason

DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(.*)", re.DOTALL)
_HOST = re.compile(r"[a-z0-9_\-]{1,63}(\.[a-z0-9_\-]{1,63})*")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
KEPT = "!#$%&'()*+,/:;=?@[]~"
"""What is not percent-encoded beside letters and digits: all of RFC 3986, and "%", so that what is already encoded stays as it is."""
_JOINERS = "\u200c\u200d"
_DOT = re.compile(r"\.|%2e", re.IGNORECASE)
_DOTS = re.compile(r"(\.|%2e){2}", re.IGNORECASE)
_LONGEST_HOST = 253

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class UrlRefused(Exception):
    """A URL that is not fetched whatever its host resolves to; `reason` is BAD_URL or SCHEME."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a URL leads: `url` is the spelling for the wire, `host` is ASCII and lower case (an IPv6 host without brackets)."""

    url: str
    scheme: str
    host: str
    port: int
    address: Address | None
    """The host as an address where it is one, in whatever notation it was written; None for a name."""


def parse(url: str) -> Target:
    """Read `url`; raises UrlRefused with a reason and a short detail that is the same on every machine."""
    text = url.strip("".join(map(chr, range(0x21))))
    text = text.replace("\t", "").replace("\r", "").replace("\n", "")
    found = _SCHEME.fullmatch(text)
    if found is None:
        raise UrlRefused(Reason.BAD_URL, "empty" if not text else "no scheme")
    scheme, rest = found.group(1).lower(), found.group(2)
    if scheme not in DEFAULT_PORTS:
        raise UrlRefused(Reason.SCHEME, scheme[:32])
    if not rest.startswith("//"):
        raise UrlRefused(Reason.BAD_URL, "no host")
    end = next((place for place, letter in enumerate(rest) if place > 1 and letter in "/?#"), len(rest))
    host, port_text = _split_authority(rest[2:end])
    address: Address | None
    if host.startswith("["):
        address = _ipv6(host)
    else:
        host = _name(host)
        address = _ipv4(host)
    name = str(address) if address is not None else host
    port = _port(port_text, scheme)

    authority = f"[{name}]" if isinstance(address, ipaddress.IPv6Address) else name
    if port != DEFAULT_PORTS[scheme]:
        authority += f":{port}"
    path, mark, query = rest[end:].partition("#")[0].partition("?")
    try:
        quoted = urllib.parse.quote(_without_dots(path or "/") + mark + query, safe=KEPT)
    except UnicodeEncodeError:
        raise UrlRefused(Reason.BAD_URL, "lone surrogate") from None
    return Target(f"{scheme}://{authority}{quoted}", scheme, name, port, address)


@functools.lru_cache(maxsize=1)
def _suffixes() -> publicsuffixlist.PublicSuffixList:
    return publicsuffixlist.PublicSuffixList()


def registered_domain(host: str) -> str:
    """The name that one party registered (`a.b.example.co.uk` -> `example.co.uk`), by the list that ships in publicsuffixlist.

    Hosting domains of that list count as suffixes, so each customer of `github.io` is a party of its own. A host that is an address,
    or that has no registered part, stands for itself. `host` as in `Target.host`.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _suffixes().privatesuffix(host) or host
    return host


def _split_authority(authority: str) -> tuple[str, str]:
    if "@" in authority:
        raise UrlRefused(Reason.BAD_URL, "user name or password")
    if "\\" in authority:
        raise UrlRefused(Reason.BAD_URL, "backslash")
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UrlRefused(Reason.BAD_URL, "bracket")
        return host + bracket, rest[1:]
    host, _, port = authority.partition(":")
    if not host:
        raise UrlRefused(Reason.BAD_URL, "no host")
    return host, port


def _port(text: str, scheme: str) -> int:
    if not text:
        return DEFAULT_PORTS[scheme]
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise UrlRefused(Reason.BAD_URL, "port")
    return int(text)


def _name(host: str) -> str:
    """A host name in ASCII: percent-decoded, mapped by UTS 46 (which also folds full-width letters and dots), one final dot dropped."""
    try:
        text = urllib.parse.unquote(host, errors="strict")
        if len(text) > _LONGEST_HOST:
            raise UrlRefused(Reason.BAD_URL, "host name")
        labels = idna.uts46_remap(text, std3_rules=False).split(".")
        ascii_name = ".".join(map(_label, labels)).removesuffix(".")
    except ValueError:
        raise UrlRefused(Reason.BAD_URL, "host name") from None
    if len(ascii_name) > _LONGEST_HOST or not _HOST.fullmatch(ascii_name):
        raise UrlRefused(Reason.BAD_URL, "host name")
    return ascii_name


def _label(label: str) -> str:
    """A mapped label in ASCII; raises ValueError where UTS 46 takes it for invalid (hyphens may stand anywhere, as in browsers)."""
    encoded = label.startswith("xn--")
    if label.isascii() and not encoded:
        return label
    name = label[4:].encode().decode("punycode") if encoded else label
    idna.check_initial_combiner(name)
    idna.check_bidi(name)
    joins = all(idna.valid_contextj(name, place) for place, letter in enumerate(name) if letter in _JOINERS)
    ascii_label = "xn--" + name.encode("punycode").decode()
    if not joins or (
        encoded and (name.isascii() or idna.uts46_remap(name, std3_rules=False) != name or ascii_label != label)
    ):
        raise ValueError(label)
    return ascii_label


def _ipv6(host: str) -> Address:
    if "%" in host:
        raise UrlRefused(Reason.BAD_URL, "zone of an address")
    try:
        return ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        raise UrlRefused(Reason.BAD_URL, "address") from None


def _ipv4(name: str) -> Address | None:
    """The address that a host name spells, or None where it is no number. Raises UrlRefused for a number that is no address."""
    labels = name.split(".")
    if not _NUMBER.fullmatch(labels[-1]):
        return None
    if len(labels) > 4 or not all(_NUMBER.fullmatch(label) for label in labels):
        raise UrlRefused(Reason.BAD_URL, "address")
    numbers = [_number(label) for label in labels]
    if any(number > 255 for number in numbers[:-1]) or numbers[-1] >= 256 ** (5 - len(numbers)):
        raise UrlRefused(Reason.BAD_URL, "address")
    value = numbers[-1]
    for place, number in enumerate(numbers[:-1]):
        value += number << (8 * (3 - place))
    return ipaddress.IPv4Address(value)


def _number(label: str) -> int:
    """A part of an IPv4 address as inet_aton reads it: 0x is hexadecimal, a leading 0 is octal."""
    try:
        if label[:2].lower() == "0x":
            return int(label[2:] or "0", 16)
        return int(label, 8) if len(label) > 1 and label.startswith("0") else int(label)
    except ValueError:
        raise UrlRefused(Reason.BAD_URL, "address") from None


def _without_dots(path: str) -> str:
    """A path, which begins with a slash, with `.` and `..` resolved, also where they are percent-encoded: rules of a robots.txt are held
    against the path that the server will see."""
    if "/." not in path and "/%2" not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if _DOTS.fullmatch(segment):
            del kept[-1:]
        elif not _DOT.fullmatch(segment):
            kept.append(segment)
    if _DOT.fullmatch(segments[-1]) or _DOTS.fullmatch(segments[-1]):
        kept.append("")
    return "/" + "/".join(kept)
