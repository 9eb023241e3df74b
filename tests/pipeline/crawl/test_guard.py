"""The address guard against a table of tricks, and the one reading of a URL behind it.

Truth: the notations are those of the WHATWG URL Standard's and inet_aton's documentation, written down by hand with where they lead; the C
library's own inet_aton is asked too. Every host of the table is a number, or resolves from the hosts file. That nobody is connected to is
seen by the interpreter's own audit of `socket.connect` and by a socket that listens on all addresses of the machine.
"""

import ipaddress
import re
import socket
import sys
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.engine import fetch_pictures
from pipeline.crawl.guard import Guard, is_public, leads_to
from pipeline.crawl.outcome import Refused
from pipeline.crawl.urls import UrlRefused, parse, registered_domain
from tests.pipeline.crawl.hostile import Hostile, whole

ADDRESS_TRICKS = [
    "http://127.0.0.1/a.jpg",
    "https://127.0.0.1:8443/a.jpg",
    "HTTP://127.0.0.1/a.jpg",
    " \n http://127.0.0.1/a.jpg",
    "ht\ntp://127.0.0.1/a.jpg",
    "http://127.255.255.254/",
    "http://2130706433/",  # decimal
    "http://0x7f000001/",  # hexadecimal
    "http://0X7F.1/",
    "http://017700000001/",  # octal
    "http://0177.0.0.1/",
    "http://0177.0x0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.0.0.1./",  # the root's dot
    "http://%31%32%37.0.0.1/",  # urllib decodes percent signs in hosts
    "http://127%2e0%2e0%2e1/",
    "http://１２７.０.０.１/",  # full width
    "http://127。0。0。1/",  # ideographic full stops
    "http://①②⑦.⓪.⓪.①/",
    "http://0/",
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/admin.png",
    "http://100.64.0.1/",  # carrier-grade NAT
    "http://100.100.100.200/latest/meta-data/",  # Alibaba's metadata
    "http://169.254.169.254/latest/meta-data/",  # everybody's metadata
    "http://2852039166/",  # the same in decimal
    "http://0xa9fea9fe/",
    "http://168.63.129.16/",  # Azure's, on an address that counts as public
    "http://192.0.0.192/",  # Oracle's
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://203.0.113.7/",
    "http://224.0.0.1/",  # multicast, global to `ipaddress`
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://192.88.99.1/",
    "http://[::]/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]:8080/",
    "http://[::ffff:127.0.0.1]/",  # mapped
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",  # compatible
    "http://[64:ff9b::127.0.0.1]/",  # NAT64
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",  # 6to4
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",  # Teredo
    "http://[fe80::1]/",
    "http://[fe80::5efe:8.8.8.8]/",  # ISATAP on a link
    "http://[2a00::5efe:127.0.0.1]/",  # ISATAP to the loopback
    "http://[fec0::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/latest/meta-data/",  # AWS metadata
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[100::1]/",
    "http://[5f00::1]/",
    "http://localhost/",
    "http://LOCALHOST:80/",
    "http://localhost./",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
]

OTHER_TRICKS = [
    ("file:///etc/passwd", Reason.SCHEME),
    ("FILE:/etc/passwd", Reason.SCHEME),
    ("local_file:///etc/passwd", Reason.BAD_URL),
    ("data:image/png;base64,AAAA", Reason.SCHEME),
    ("ftp://example.com/a.jpg", Reason.SCHEME),
    ("gopher://127.0.0.1:6379/_FLUSHALL", Reason.SCHEME),
    ("javascript:alert(1)", Reason.SCHEME),
    ("jar:http://example.com!/", Reason.SCHEME),
    ("url:file:///etc/passwd", Reason.SCHEME),
    ("<URL:file:///etc/passwd>", Reason.BAD_URL),
    ("http+unix://%2Fvar%2Frun%2Fdocker.sock/", Reason.SCHEME),
    ("", Reason.BAD_URL),
    ("   ", Reason.BAD_URL),
    ("/images/a.jpg", Reason.BAD_URL),
    ("//127.0.0.1/a.jpg", Reason.BAD_URL),
    ("http:", Reason.BAD_URL),
    ("http://", Reason.BAD_URL),
    ("http:///a.jpg", Reason.BAD_URL),
    ("http:127.0.0.1/a.jpg", Reason.BAD_URL),
    ("http:/127.0.0.1/a.jpg", Reason.BAD_URL),
    ("http:\\\\127.0.0.1\\a.jpg", Reason.BAD_URL),
    ("http://example.com@127.0.0.1/", Reason.BAD_URL),
    ("http://1.1.1.1@127.0.0.1/", Reason.BAD_URL),
    ("http://127.0.0.1\\@1.1.1.1/", Reason.BAD_URL),
    ("http://1.1.1.1\\@127.0.0.1/", Reason.BAD_URL),
    ("http://1.1.1.1:80@127.0.0.1:80/", Reason.BAD_URL),
    ("http://user:password@8.8.8.8/", Reason.BAD_URL),
    ("http://1.1.1.1 127.0.0.1/", Reason.BAD_URL),
    ("http://1.1.1.1%0d%0aHost:127.0.0.1/", Reason.BAD_URL),
    ("http://1.1.1.1%00.127.0.0.1/", Reason.BAD_URL),
    ("http://℀.com/", Reason.BAD_URL),  # normalises to a/c.com
    ("http://8.8.8.8:99999/", Reason.BAD_URL),
    ("http://8.8.8.8:0/", Reason.BAD_URL),
    ("http://8.8.8.8:80:80/", Reason.BAD_URL),
    ("http://8.8.8.8:٨٠/", Reason.BAD_URL),
    ("http://8.8.8.8:-1/", Reason.BAD_URL),
    ("http://1.2.3.4.5/", Reason.BAD_URL),
    ("http://256.256.256.256/", Reason.BAD_URL),
    ("http://4294967296/", Reason.BAD_URL),
    ("http://0x1ffffffff/", Reason.BAD_URL),
    ("http://08.8.8.8/", Reason.BAD_URL),
    ("http://a.1/", Reason.BAD_URL),
    ("http://[::1/", Reason.BAD_URL),
    ("http://[::1]x/", Reason.BAD_URL),
    ("http://[fe80::1%25eth0]/", Reason.BAD_URL),
    ("http://[127.0.0.1]/", Reason.BAD_URL),
    ("http://[v1.a]/", Reason.BAD_URL),
    ("http://a..b/", Reason.BAD_URL),
    ("http://xn--a/", Reason.BAD_URL),  # Punycode of a control character
    ("http://xn--/", Reason.BAD_URL),
    ("http://xn--strasse-.de/", Reason.BAD_URL),  # of plain ASCII
    ("http://xn--999999999999999999/", Reason.BAD_URL),
    ("http://1א.com/", Reason.BAD_URL),  # no order of writing
    ("http://\u0301a.com/", Reason.BAD_URL),  # begins with a mark
    ("http://a\u200db.com/", Reason.BAD_URL),  # a joiner that joins nothing
    ("http://" + "a" * 64 + ".com/", Reason.BAD_URL),
    ("http://" + "é" * 100_000 + ".com/", Reason.BAD_URL),
]

PUBLIC = [
    "http://8.8.8.8/a.jpg",
    "https://1.1.1.1",
    "http://134744072/",  # 8.8.8.8
    "http://0x08080808:8080/",
    "http://[2606:4700::1111]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[64:ff9b::8.8.8.8]/",
    "http://[2002:808:808::1]/",
]


@pytest.mark.parametrize("url", ADDRESS_TRICKS)
def test_addresses_that_are_not_public_are_refused_however_they_are_written(url: str) -> None:
    refusal = Guard().refuse(url)
    assert refusal is not None
    assert refusal[0] is Reason.ADDRESS


@pytest.mark.parametrize(("url", "reason"), OTHER_TRICKS)
def test_what_is_no_plain_web_url_is_refused(url: str, reason: Reason) -> None:
    refusal = Guard(["0.0.0.0/0", "::/0"]).refuse(url)  # whatever is allowed
    assert refusal is not None
    assert refusal[0] is reason


def at_port(url: str, port: int) -> str:
    """The trick aimed at a port; those that name one, or have no plain authority, stay as they are."""
    found = re.match(r"(\s*[a-zA-Z\n]+://)([^/?#:\[\]]+|\[[^\]]*\])(/.*)?$", url, re.DOTALL)
    return url if found is None else f"{found[1]}{found[2]}:{port}{found[3] or '/'}"


def test_no_trick_is_connected_to_neither_directly_nor_by_a_redirect() -> None:
    """All of both tables, in a list of URLs and behind redirects of an allowed host, through the engine that connects."""
    connected: list[str] = []
    watching = [True]

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "socket.connect" and isinstance(arguments[1], tuple):
            connected.append(str(arguments[1][0]))

    with socket.create_server(("", 0)) as listener, socket.create_server(("::", 0), family=socket.AF_INET6) as other:
        tricks = [
            at_port(url, listen.getsockname()[1])
            for listen in (listener, other)
            for url in (*ADDRESS_TRICKS, *(url for url, _ in OTHER_TRICKS))
        ]
        locations = [trick for trick in tricks if trick.strip() and "\n" not in trick and len(trick) < 4000]
        answers = {
            f"/{number}": whole(302, b"", "Location: " + urllib.parse.quote(trick, safe="!#$%&'()*+,/:;=?@[]~\\<>"))
            for number, trick in enumerate(locations)
        }
        with Hostile(answers=answers).running() as web:
            urls = [*dict.fromkeys(tricks), *(web.url(path) for path in answers)]
            crawl = CrawlConfig(allow_addresses=(f"{web.hosts[0]}/32",), timeout_s=5, per_host=16)
            sys.addaudithook(audit)  # there is no way to take it out again
            try:
                outcomes = fetch_pictures(urls, crawl, lambda host: 16)
            finally:
                watching.clear()
        for listen in (listener, other):
            listen.setblocking(False)
            with pytest.raises(BlockingIOError):
                listen.accept()
    assert len(urls) > 200
    assert all(isinstance(outcome, Refused) for outcome in outcomes)
    assert set(connected) == {web.hosts[0]}


@pytest.mark.parametrize("url", PUBLIC)
def test_public_addresses_pass(url: str) -> None:
    assert Guard().refuse(url) is None


def test_the_allow_list_opens_what_it_names_and_nothing_else() -> None:
    guard = Guard(["127.0.0.0/8", "fd00::/8"])
    allowed = ["http://127.0.0.1:8080/", "http://2130706433/", "http://[::ffff:127.0.0.1]/", "http://[fd00::1]/"]
    assert [guard.refuse(url) for url in allowed] == [None] * len(allowed)
    for url in ("http://10.0.0.1/", "http://[::1]/", "http://[fe80::1]/", "file:///etc/passwd"):
        assert guard.refuse(url) is not None


def test_an_allow_list_that_does_not_parse_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1/8"):
        Guard(["127.0.0.1/8"])


def test_a_name_is_refused_for_any_of_its_addresses() -> None:
    public, private = ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("10.0.0.1")
    assert Guard().refuse_addresses([public]) is None
    assert Guard().refuse_addresses([public, private]) == (Reason.ADDRESS, "10.0.0.1")
    mapped = ipaddress.ip_address("::ffff:10.0.0.1")
    assert Guard().refuse_addresses([mapped]) == (Reason.ADDRESS, "10.0.0.1")


def test_a_name_that_does_not_resolve() -> None:
    refusal = Guard().refuse("http://no-such-host.invalid/a.jpg")  # RFC 6761: never resolves
    assert refusal is not None
    assert refusal[0] is Reason.DNS


def test_judgement_follows_the_registries_block_by_block() -> None:
    """Every IPv4 /8: public exactly where the IANA registry has something other than special-purpose space at its .1.1.1."""
    special = {0, 10, 127, *range(224, 256)}
    for first in range(256):
        assert is_public(ipaddress.IPv4Address(f"{first}.1.1.1")) == (first not in special)
        inside = ipaddress.IPv6Address(f"::ffff:{first}.1.1.1")
        assert leads_to(inside) == [ipaddress.IPv4Address(f"{first}.1.1.1")]


def test_nothing_that_the_standard_library_holds_back_is_public() -> None:
    """Both edges of every network that `ipaddress` of this Python knows as private."""
    for base in ("10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16", "172.16.0.0/12", "100.64.0.0/10", "198.18.0.0/15"):
        network = ipaddress.IPv4Network(base)
        for edge in (network[0], network[-1]):
            assert not edge.is_global
            assert not is_public(edge)
        for outside in (int(network[0]) - 1, int(network[-1]) + 1):
            assert is_public(ipaddress.IPv4Address(outside)) == ipaddress.IPv4Address(outside).is_global
    for first in range(0, 0x10000, 0x40):
        address = ipaddress.IPv6Address(first << 112 | 1)
        assert address.is_global or not is_public(address) or address.sixtofour is not None


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "017.0x10.1", "1.2.65535", "0300.0250.1", "3232235777", "0"])
def test_numbers_are_read_as_the_c_library_reads_them(host: str) -> None:
    assert parse(f"http://{host}/").host == socket.inet_ntoa(socket.inet_aton(host))


@pytest.mark.parametrize(
    ("url", "wire"),
    [
        ("http://Example.COM", "http://example.com/"),
        ("http://example.com:80/a?b#c", "http://example.com/a?b"),
        ("https://example.com:80/a", "https://example.com:80/a"),
        ("http://example.com?q", "http://example.com/?q"),
        ("http://example.com/a b/ä.jpg?ü=1", "http://example.com/a%20b/%C3%A4.jpg?%C3%BC=1"),
        ("http://example.com/%E4%B8%AD%2f", "http://example.com/%E4%B8%AD%2f"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://under_score.example/\\", "http://under_score.example/%5C"),
        ("http://[2001:DB8:0::1]:81/", "http://[2001:db8::1]:81/"),
        ("http://0x7f.1/x", "http://127.0.0.1/x"),
        # UTS 46 without transitional processing, as browsers: these were other owners' domains under IDNA 2003.
        ("http://straße.de/", "http://xn--strae-oqa.de/"),
        ("http://βόλος.com/", "http://xn--nxasmm1c.com/"),
        ("http://نامه‌ای.com/", "http://xn--mgba3gch31f060k.com/"),
        # What IDNA 2008 forbids and browsers take: symbols, underscores, hyphens anywhere.
        ("http://☃.net/", "http://xn--n3h.net/"),
        ("http://r3---sn-a.example/", "http://r3---sn-a.example/"),
        ("http://-a-.example/", "http://-a-.example/"),
        ("http://xn--strae-oqa.de/", "http://xn--strae-oqa.de/"),
        ("http://XN--BCHER-KVA.example./", "http://xn--bcher-kva.example/"),
        # Dot segments, plain and percent-encoded; in queries they are letters.
        ("http://e.com/a/../b", "http://e.com/b"),
        ("http://e.com/a/./b/.", "http://e.com/a/b/"),
        ("http://e.com/a/b/..", "http://e.com/a/"),
        ("http://e.com/../../x", "http://e.com/x"),
        ("http://e.com/a//../b", "http://e.com/a/b"),
        ("http://e.com/a/%2e%2E/b/%2e/c", "http://e.com/b/c"),
        ("http://e.com/a/.%2e", "http://e.com/"),
        ("http://e.com/a/.../.b/..c?/../d#/../e", "http://e.com/a/.../.b/..c?/../d"),
        ("http://e.com/\r\nHost: evil", "http://e.com/Host:%20evil"),
        ("http://e.com/\x00\x7f", "http://e.com/%00%7F"),
    ],
)
def test_the_spelling_for_the_wire(url: str, wire: str) -> None:
    assert parse(url).url == wire
    assert parse(wire).url == wire


def dots_removed(path: str) -> str:
    """RFC 3986, section 5.2.4, step by step."""
    rest, output = path, ""
    while rest:
        if rest.startswith("/./"):
            rest = rest[2:]
        elif rest == "/.":
            rest = "/"
        elif rest.startswith("/../") or rest == "/..":
            rest = "/" + rest[4:]
            output = output[: output.rfind("/")] if "/" in output else ""
        else:
            end = rest.find("/", 1)
            end = len(rest) if end < 0 else end
            output, rest = output + rest[:end], rest[end:]
    return output


@settings(max_examples=500, deadline=None)
@given(st.text("ab./", max_size=14))
def test_dot_segments_are_those_of_the_rfc(path: str) -> None:
    assert parse(f"http://e.com/{path}").url == "http://e.com" + dots_removed(f"/{path}")


@settings(max_examples=1000, deadline=None)
@given(st.text(st.sampled_from("htp:/?#.%2eE@[]\\ \t\n\x00abß\u0661。①אxn--") | st.characters(), max_size=30))
def test_the_spelling_is_read_as_itself(text: str) -> None:
    """Nothing but UrlRefused is raised, and what was respelled once is not read in another way the next time."""
    for url in (text, f"http://{text}", f"http://e.com/{text}"):
        try:
            target = parse(url)
        except UrlRefused:
            continue
        assert target.url.isascii()
        assert parse(target.url) == target


def test_a_lone_surrogate_is_no_url() -> None:
    with pytest.raises(UrlRefused):
        parse("http://example.com/\ud800")


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("a.b.example.com", "example.com"),
        ("example.co.uk", "example.co.uk"),
        ("img.shop.example.co.uk", "example.co.uk"),
        ("someone.github.io", "someone.github.io"),
        ("github.io", "github.io"),
        ("localhost", "localhost"),
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8::1", "2001:db8::1"),
        ("a.no-such-suffix", "a.no-such-suffix"),
    ],
)
def test_registered_domains(host: str, domain: str) -> None:
    assert registered_domain(host) == domain
