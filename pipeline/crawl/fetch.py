"""One URL fetched under the guard: the bytes of a picture, or a named refusal, never later than the deadline.

`Fetcher` is built on aiohttp's client with everything taken from it that a hostile server could use: redirects are followed here, each
hop read again by `urls.parse` and judged (address, robots.txt, X-Robots-Tag); names are looked up by `names.py`; a compressed body is
inflated here under the cap; there are no cookies and no proxies. What a server may cost is bounded:

* time: `deadline_s` for the URL as a whole, `timeout_s` for connecting and for each read;
* bytes: `max_bytes` of the body, as sent and as inflated, whatever length was announced; a header of 8 kB, at most 128 of them;
* wrapping: sixteen interim answers (1xx), and little more around the chunks of a body than is in them (`connections.py`);
* requests: ten redirects, `retries` further attempts, and those only where asking again may help: after a broken connection, a 5xx, or a
  429 or 503 that says when to come back (the whole host is then left alone until that time).

A Fetcher belongs to one event loop and one unit. Whose turn it is at a host is the caller's affair (`hosts.py`, `engine.py`): what the
servers themselves ask for in that respect is told to `Manners` at once. A host that said when to come back (Retry-After) is sent nothing
before that, whatever leads there: a URL, a redirect, another attempt, a robots.txt.

A process that has no file left for a socket says nothing about a URL. Such a hop is tried again until the deadline; after that RunError
ends the run, for what a unit records is never fetched again.
"""

import asyncio
import dataclasses
import errno
import ssl
import urllib.parse
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp
import yarl
from aiohttp.http_exceptions import HttpProcessingError

from pipeline.content import opt_out
from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.connections import Connector, Resolver, Wasteful
from pipeline.crawl.files import OURS, WAIT_S, require_files, starved
from pipeline.crawl.guard import Guard
from pipeline.crawl.names import AddressRefused, Names
from pipeline.crawl.outcome import Refused
from pipeline.crawl.robots import MAX_BYTES, MAX_REDIRECTS, Robots
from pipeline.crawl.urls import Target, UrlRefused, parse

MOST_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FIRST_WAIT_S = 0.25  # before the second attempt; doubled before each further one
_HEADERS = {
    "Accept": "image/avif,image/webp,image/png,image/jpeg,image/*;q=0.9,*/*;q=0.5",
    "Accept-Encoding": "identity",
}
_GZIP = 16 + zlib.MAX_WBITS
_GZIP_MAGIC = b"\x1f\x8b"
_WINDOW_BITS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}  # of zlib, by the name in Content-Encoding
_INFLATED_AT_ONCE = 1 << 14  # bytes as sent: what follows a member is copied for each member


@dataclasses.dataclass(frozen=True)
class _Purpose:
    """What a request is for: a picture, or the robots.txt that has to be read before."""

    max_bytes: int
    redirects: int
    is_robots: bool


@dataclasses.dataclass
class _Hop:
    """A stop on the way of one attempt, the time of the event loop at which it was come to, and whether files were wanting there."""

    target: Target
    began: float
    starved: bool = False

    @property
    def origin(self) -> tuple[str, int]:
        return self.target.host, self.target.port


class Manners(Protocol):
    """What a host asks for, told as soon as it is known; times are those of the event loop."""

    def rules_read(self, host: str, delay_s: float) -> None:
        """A robots.txt of the host is read; it wants `delay_s` between two requests, up to `max_crawl_delay_s` (0: it says nothing)."""

    def paused(self, host: str, until: float) -> None:
        """The host asked not to be asked before `until` (Retry-After, up to `max_retry_after_s`)."""

    def extra_request(self, host: str) -> None:
        """The host is sent a request beside that for the URL whose turn it was: a robots.txt, a redirect's target, another attempt."""


class Fetcher:
    """Fetches URLs as `config` says; use it as `async with Fetcher(config) as fetcher: await fetcher.fetch(url)`.

    `guard` is by default that of `config.allow_addresses`. Any number of `fetch` may run at once in the loop that entered it.
    """

    def __init__(self, config: CrawlConfig, guard: Guard | None = None, manners: Manners | None = None) -> None:
        self._config = config
        self._guard = guard or Guard(config.allow_addresses)
        self._manners = manners
        # A name that hangs keeps its thread for longer than anybody waits for it; four for each fetch leave some for the others.
        self._names = Names(self._guard, config.timeout_s, max(256, 4 * config.concurrency))
        self._robots = Robots(config.agent, self._get_robots, self._paused_until)
        self._paused: dict[str, tuple[float, Refused]] = {}  # by host, with the answer that said so
        self._redirect_failures: dict[tuple[str, int], int] = {}  # in a row, by host and port that redirects led to
        self._given_up: dict[tuple[str, int], Refused] = {}  # of those
        self._picture = _Purpose(config.max_bytes, MOST_REDIRECTS, is_robots=False)
        self._rules = _Purpose(MAX_BYTES, MAX_REDIRECTS, is_robots=True)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        most_idle = require_files(self._config.at_once, self._config.at_once_key)
        # One context for all connections: loading the system's certificates takes 23 ms of CPU.
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        self._session = aiohttp.ClientSession(
            connector=Connector(Resolver(self._names), self._names.gate, context, most_idle),
            headers={**_HEADERS, "User-Agent": self._config.agent_header},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._config.timeout_s, sock_read=self._config.timeout_s
            ),
            read_bufsize=1 << 16,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._robots.close()
        await self._names.close()
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: str | Target) -> bytes | Refused:
        """The body of an answer of 2xx, else why there is none; within `deadline_s`.

        Raises nothing for what a server does; RunError where this process had no file left to open all that time.
        """
        try:
            target = url if isinstance(url, Target) else parse(url)
        except UrlRefused as refused:
            return Refused(refused.reason, refused.detail)
        return await self._in_time(target, self._picture, self._config.deadline_s)

    # ---- attempts

    async def _get_robots(self, target: Target) -> bytes | Refused:
        # Half the time, so that an origin that never ends its robots.txt is named for that and not for the picture's deadline.
        return await self._in_time(target, self._rules, self._config.deadline_s / 2)

    async def _in_time(self, target: Target, purpose: _Purpose, seconds: float) -> bytes | Refused:
        now = asyncio.get_running_loop().time
        way = [_Hop(target, now())]
        try:
            async with asyncio.timeout(seconds):
                answer = await self._attempts(way, purpose, now() + seconds)
        except TimeoutError:
            if any(hop.starved for hop in way):
                raise starved(self._config.deadline_s, self._config.at_once_key) from None
            ends = [*(hop.began for hop in way[1:]), now()]
            _, slowest = max((end - hop.began, hop.origin) for hop, end in zip(way, ends, strict=True))
            answer = Refused(Reason.TIMEOUT, "deadline", at=slowest)
        if isinstance(answer, Refused) and answer.at is None:
            answer = dataclasses.replace(answer, at=way[-1].origin)
        if len(way) > 1:
            self._note_redirect(way[-1].origin, answer)
        return answer

    def _note_redirect(self, origin: tuple[str, int], answer: bytes | Refused) -> None:
        """Give up what redirects lead to after `host_failures` of them in a row, so that a live host full of dead links holds nobody up.
        Redirects alone: what else waits for that host has its own count, and a stranger's links are not to spoil it."""
        if isinstance(answer, bytes) or not host_failed(answer):
            self._redirect_failures.pop(origin, None)
            return
        self._redirect_failures[origin] = self._redirect_failures.get(origin, 0) + 1
        if self._redirect_failures[origin] >= self._config.host_failures:
            self._given_up[origin] = answer

    async def _attempts(self, way: list[_Hop], purpose: _Purpose, deadline: float) -> bytes | Refused:
        """Ask for the first of `way`, once or more; the last of it is always the hop that is being asked."""
        now = asyncio.get_running_loop().time
        answer: bytes | Refused = Refused(Reason.CONNECTION, "not tried")
        for attempt in range(self._config.retries + 1):
            del way[1:]
            answer = await self._follow(way, purpose, deadline, out_of_turn=attempt > 0 or purpose.is_robots)
            if isinstance(answer, bytes):
                break
            pause = self._paused_until(way[-1].target.host) - now()
            asked_to_wait = answer.reason is Reason.HTTP_STATUS and answer.detail in ("429", "503") and pause > 0
            wait = max(pause, _FIRST_WAIT_S * 2**attempt)
            if not (asked_to_wait or _may_pass(answer)) or attempt == self._config.retries or now() + wait > deadline:
                break
            await asyncio.sleep(wait)
        return answer

    async def _follow(
        self, way: list[_Hop], purpose: _Purpose, deadline: float, *, out_of_turn: bool
    ) -> bytes | Refused:
        """One attempt: the target, and where it redirects to. Each hop is added to `way`."""
        seen: set[str] = set()
        while way[-1].target.url not in seen and len(seen) <= purpose.redirects:
            target = way[-1].target
            if seen and (given_up := self._given_up.get(way[-1].origin)) is not None:
                return given_up
            answer = await self._visit(way[-1], purpose, deadline, out_of_turn=out_of_turn or bool(seen))
            seen.add(target.url)
            if not isinstance(answer, str):
                return answer
            try:
                way.append(_Hop(parse(_joined(target.url, answer)), asyncio.get_running_loop().time()))
            except UrlRefused as error:
                where = "to another scheme" if error.reason is Reason.SCHEME else f"to no URL: {error.detail}"
                return Refused(Reason.REDIRECT, where)
        return Refused(Reason.REDIRECT, "loop, or too many")

    async def _visit(
        self, hop: _Hop, purpose: _Purpose, deadline: float, *, out_of_turn: bool
    ) -> bytes | str | Refused:
        """One hop, tried again for as long as this process has no file left to open for it."""
        while True:
            try:
                refused = await self._refuse(hop.target, purpose) or await self._pause_is_over(hop.target, deadline)
                if refused is not None:
                    return refused
                if self._manners is not None and out_of_turn:
                    self._manners.extra_request(hop.target.host)
                return await self._ask(hop.target, purpose)
            except OSError as error:
                if error.errno not in OURS:
                    raise
            hop.starved = True
            if asyncio.get_running_loop().time() + WAIT_S > deadline:
                raise starved(self._config.deadline_s, self._config.at_once_key)
            await asyncio.sleep(WAIT_S)

    async def _refuse(self, target: Target, purpose: _Purpose) -> Refused | None:
        """The guard's word over a hop, then that of the origin's robots.txt."""
        if target.address is not None:
            refusal = self._guard.refuse_addresses([target.address])
            if refusal is not None:
                return Refused(*refusal)
        elif isinstance(answer := await self._names.addresses(target.host), Refused):
            return answer
        if purpose.is_robots or not self._config.respect_robots:
            return None
        policy = await self._robots.policy(target)
        if policy.refused is None and self._manners is not None:
            delay = policy.rules.delay_s if policy.rules is not None else 0.0
            self._manners.rules_read(target.host, min(delay, self._config.max_crawl_delay_s))
        return policy.refusal(target)

    async def _pause_is_over(self, target: Target, deadline: float) -> Refused | None:
        """Wait until the host may be asked again; where that is too late, the answer in which it said so."""
        now = asyncio.get_running_loop().time
        while (until := self._paused_until(target.host)) > now():
            if until > deadline:
                return self._paused[target.host][1]
            await asyncio.sleep(until - now())
        return None

    def _paused_until(self, host: str) -> float:
        """The time of the event loop before which a host asked not to be asked."""
        return self._paused[host][0] if host in self._paused else 0.0

    # ---- one exchange

    async def _ask(self, target: Target, purpose: _Purpose) -> bytes | str | Refused:
        """One request: the body, where a redirect leads (as written), or a refusal. Raises an OSError of `OURS` for want of files."""
        assert self._session is not None, "enter the Fetcher first"
        wanting, answered = self._names.starved, False
        answer: bytes | str | Refused
        try:
            async with self._session.get(yarl.URL(target.url, encoded=True), allow_redirects=False) as response:
                answered = True
                answer = await self._read(response, target, purpose)
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError, zlib.error) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            if isinstance(cause, OSError) and cause.errno in OURS:
                raise cause from None
            if isinstance(error, aiohttp.ClientConnectorError) and self._names.starved > wanting:
                raise OSError(errno.EMFILE, "while connecting") from None
            answer = refused_by(error)
        return dataclasses.replace(answer, answered=answered) if isinstance(answer, Refused) else answer

    async def _read(self, response: aiohttp.ClientResponse, target: Target, purpose: _Purpose) -> bytes | str | Refused:
        status, headers = response.status, response.headers
        if not (200 <= status < 300 or status in _REDIRECTS):
            refused = Refused(Reason.HTTP_STATUS, str(status))
            if status in (429, 503) and "Retry-After" in headers:
                self._pause(target.host, headers["Retry-After"], refused)
            return refused
        if self._config.respect_opt_out and not purpose.is_robots:
            directive = opt_out.in_headers(headers.getall("X-Robots-Tag", ()), (self._config.agent,))
            if directive is not None:
                return Refused(Reason.OPT_OUT, f"X-Robots-Tag: {directive}")
        if status in _REDIRECTS:
            return headers["Location"] if "Location" in headers else Refused(Reason.HTTP_STATUS, str(status))
        return await _body(response, purpose)

    def _pause(self, host: str, retry_after: str, refused: Refused) -> None:
        seconds = min(_seconds(retry_after, lambda: datetime.now(UTC)), self._config.max_retry_after_s)
        until = asyncio.get_running_loop().time() + seconds
        if until > self._paused_until(host):
            self._paused[host] = (until, refused)
            if self._manners is not None:
                self._manners.paused(host, until)


def _may_pass(refused: Refused) -> bool:
    """Whether asking again at once may help. After a timeout it seldom does and costs most."""
    if refused.reason is Reason.HTTP_STATUS:
        return refused.detail.startswith("5")
    return refused.reason is Reason.CONNECTION


def host_failed(refused: Refused) -> bool:
    """Whether a refusal says that its host is not there, or not now: enough of them in a row, and it is asked no more.

    A body that breaks off says that the host is there; one that does not come in time holds the unit up, and counts.
    """
    if refused.reason is Reason.HTTP_STATUS:
        return refused.detail in ("429", "503")
    if refused.reason is Reason.CONNECTION:
        return not refused.answered
    return refused.reason in (Reason.TIMEOUT, Reason.DNS)


def _joined(base: str, location: str) -> str:
    """A Location, which may be relative, against the URL that answered with it. Bytes that are no UTF-8 are percent-encoded."""
    try:
        location.encode()
    except UnicodeEncodeError:  # aiohttp gives them as surrogates
        location = urllib.parse.quote(location, safe="!#$%&'()*+,/:;=?@[]~", errors="surrogateescape")
    try:
        return urllib.parse.urljoin(base, location.strip())
    except ValueError:
        raise UrlRefused(Reason.BAD_URL, "not understood") from None


def _seconds(retry_after: str, now: Callable[[], datetime]) -> float:
    """Retry-After (RFC 9110, section 10.2.3): seconds or a date; 0 where it is neither or has passed."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # OverflowError: a year, a zone beyond what a machine counts in
        return 0.0
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now()).total_seconds())


async def _body(response: aiohttp.ClientResponse, purpose: _Purpose) -> bytes | Refused:
    """The body, inflated where it says so, held to the cap in both shapes; there a picture is refused, and a robots.txt cut off behind
    the last line that is whole: half a rule is one that nobody wrote."""
    announced = response.content_length
    if announced is not None and announced > purpose.max_bytes and not purpose.is_robots:
        return Refused(Reason.TOO_MANY_BYTES, f"{announced} bytes")
    bits = _WINDOW_BITS.get(response.headers.get("Content-Encoding", "").strip().lower())
    inflate = _Inflater(bits) if bits else None
    body, sent = bytearray(), 0
    async for piece in response.content.iter_any():
        sent += len(piece)
        body += inflate.feed(piece, purpose.max_bytes + 1 - len(body)) if inflate is not None else piece
        if len(body) > purpose.max_bytes or sent > purpose.max_bytes:
            if purpose.is_robots:
                return _whole_lines(body[: purpose.max_bytes])
            return Refused(Reason.TOO_MANY_BYTES, f"more than {purpose.max_bytes} bytes")
        if inflate is not None and inflate.is_over:
            break  # what a server sends behind the end of its stream is nothing to wait for, or to hold
    if inflate is not None and not inflate.is_whole:
        return _whole_lines(body) if purpose.is_robots else Refused(Reason.CONNECTION, "ended early")
    return bytes(body)


def _whole_lines(body: bytes | bytearray) -> bytes:
    return bytes(body[: max(body.rfind(b"\n"), body.rfind(b"\r")) + 1])


class _Inflater:
    """A body in gzip (of several members, one after the other) or deflate (in zlib's wrapper, as it should be, or not), piece by piece.

    What says to be gzip and does not begin like it is given back as it is: pictures are often sent so.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._begun = b""  # of a stream whose first two bytes have not come yet
        self._stream: Any = None  # of zlib; mypy knows no name for its type
        self._is_plain = False
        self.is_over = False
        """The stream has ended and something else follows."""

    @property
    def is_whole(self) -> bool:
        return self._is_plain or (self._stream is not None and self._stream.eof)

    def feed(self, piece: bytes, most: int) -> bytes:
        """What a piece inflates to, at most `most` bytes; raises zlib.error."""
        made = bytearray()
        for start in range(0, len(piece), _INFLATED_AT_ONCE):
            rest = piece[start : start + _INFLATED_AT_ONCE]
            while rest and len(made) < most and not self.is_over:
                rest = self._step(rest, most - len(made), made)
        return bytes(made)

    def _step(self, data: bytes, most: int, made: bytearray) -> bytes:
        """Inflate as much of `data` as belongs to one stream; what is left of it."""
        if self._is_plain:
            made += data
            return b""
        if self._stream is None or self._stream.eof:
            is_first = self._stream is None
            data, self._begun = self._begun + data, b""
            if len(data) < 2:
                self._begun = data
                return b""
            if not is_first and not (self._bits == _GZIP and data.startswith(_GZIP_MAGIC)):
                self.is_over = True
                return b""
            if self._bits == _GZIP and not data.startswith(_GZIP_MAGIC):
                self._is_plain = True
                return data
            # RFC 1950, 2.2: the method in the low bits of the first byte, and both bytes together a multiple of 31.
            is_zlib = data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
            self._stream = zlib.decompressobj(self._bits if self._bits == _GZIP or is_zlib else -zlib.MAX_WBITS)
        made += self._stream.decompress(data, most)
        return bytes(self._stream.unused_data)


_ERRNO_WORDS = {
    errno.ECONNREFUSED: "refused",
    # A reset looks like an end or like a reset, depending on what was read before it: one name for both.
    errno.ECONNRESET: "ended early",
    errno.EPIPE: "ended early",
    errno.ECONNABORTED: "ended early",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
}


def refused_by(error: Exception) -> Refused:
    """Name what aiohttp raises; the detail never holds an address, a time or a server's own words."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, AddressRefused):
        return cause.refused
    if isinstance(error, aiohttp.ClientSSLError) or isinstance(cause, ssl.SSLError):
        return Refused(Reason.TLS, "certificate or handshake")
    number = cause.errno if isinstance(cause, OSError) else None
    if isinstance(error, TimeoutError) or number == errno.ETIMEDOUT:
        return Refused(Reason.TIMEOUT, "timed out")
    if isinstance(error, Wasteful):
        return Refused(Reason.CONNECTION, error.detail)
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError)):
        return Refused(Reason.CONNECTION, "ended early")
    if isinstance(error, aiohttp.InvalidURL):
        return Refused(Reason.BAD_URL, "not understood")
    if isinstance(cause, OSError):
        return Refused(Reason.CONNECTION, _ERRNO_WORDS.get(number or 0, "failed"))
    return Refused(Reason.CONNECTION, "not HTTP")
