"""The engine `img2dataset`: its downloader fetches, its resizer makes the stored picture; the rest is ours.

Its `Downloader` class is not used: it hides how a fetch ended in one free text, writes rows as they complete and deletes its input.
Its `download_image` is called from a bounded thread pool with a queue per host, its message is mapped to the closed list of
reasons, and the outcomes come back in the order of the URLs. Around it:

* before: the URL is respelled (`urls.py`) and refused unless it is public http(s) (`guard.py`); `file:` and `data:` never reach it;
* beneath: `urllib`, which it calls, goes through our opener: every hop and every address is judged, no proxy, a cap on the body;
* after: our own decoding (limits, truncation, hashes). Its resizer stores EXIF-rotated pictures sideways and 16-bit ones
  near white, so it is given the source bytes only where these are plain (`picture.is_plain`), else an upright 8-bit RGB copy of them.

What stays open is listed in README.md ("What the engine img2dataset leaves open").

Importing img2dataset loads pandas, wandb and albumentations (a second, 180 MB), so this module imports it in the worker that fetches
and nowhere else. Its resizer points the process's stdout and stderr at /dev/null while it works and is not safe to run twice at once
for that reason: pictures are made in the calling thread only. urllib's opener is the process's too: one unit at a time in a process.
"""

import concurrent.futures
import functools
import http.client
import importlib.util
import io
import os
import re
import socket
import ssl
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from types import ModuleType
from typing import IO, Any

import PIL.Image

from pipeline.content import opt_out
from pipeline.content.image import decode
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.files import OURS, WAIT_S, require_files, starved
from pipeline.crawl.guard import Guard
from pipeline.crawl.hosts import HostQueues
from pipeline.crawl.outcome import Outcome, Refused
from pipeline.crawl.picture import examine, is_plain, stored
from pipeline.crawl.urls import Target, UrlRefused, parse

_STATUS = re.compile(r"HTTP Error (\d{3}): (.*)", re.DOTALL)
_REDIRECTS = ("301", "302", "303", "307", "308")
_MESSAGES: tuple[tuple[re.Pattern[str], Reason, str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), reason, detail)
    for pattern, reason, detail in (
        (r"X-Robots-Tag", Reason.OPT_OUT, "X-Robots-Tag"),
        (r"timed out", Reason.TIMEOUT, "timed out"),
        (r"Errno -\d+\]|getaddrinfo|Name or service not known", Reason.DNS, "no such name"),
        (r"\bSSL\b|_ssl\.c|certificate", Reason.TLS, "certificate or handshake"),
        (r"Connection refused", Reason.CONNECTION, "refused"),
        (r"reset by peer|Broken pipe", Reason.CONNECTION, "reset"),
        (r"unreachable|No route to host", Reason.CONNECTION, "unreachable"),
        (r"IncompleteRead|Remote end closed", Reason.CONNECTION, "ended early"),
        (
            r"control characters|no host given|unknown url type|codec can't encode",
            Reason.BAD_URL,
            "not understood by urllib",
        ),
    )
)


def require(version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Raise InputError where this engine cannot run; cheap, for a `--check`."""
    if version >= (3, 13):
        raise InputError(
            f"crawl.engine: 'img2dataset' needs a Python below 3.13 and this is {version[0]}.{version[1]} "
            "(it imports imghdr, which 3.13 removed); run the crawl with Python 3.11 or 3.12"
        )
    if importlib.util.find_spec("img2dataset") is None:
        raise InputError("crawl.engine: 'img2dataset' is not installed; install it with pip install '.[pipeline]'")


def fetch_pictures(urls: Sequence[str], config: CrawlConfig, host_limit: Callable[[str], int]) -> list[Outcome]:
    """Fetch every URL once; one outcome per URL, in their order (see `outcome.Engine`).

    Raises InputError where the process may not open enough files, RunError where it ran out of them all the same.
    At most `config.threads` fetches run at once and twice as many pictures are held in memory before they are resized.
    """
    require_files(config.at_once, config.at_once_key)
    downloader, resizer = _library()
    resize = _make_resizer(resizer, config)
    guard = Guard(config.allow_addresses)
    agents = [config.user_agent_token] if config.user_agent_token else []
    opener = make_opener(guard, config.max_bytes, agents if config.respect_opt_out else None)
    urllib.request.install_opener(opener)
    outcomes: dict[int, Outcome] = {}
    queues = HostQueues(host_limit)
    for index, url in enumerate(urls):
        try:
            queues.add(index, parse(url))
        except UrlRefused as refused:
            outcomes[index] = Refused(refused.reason, refused.detail)

    fetch = functools.partial(_fetch, downloader.download_image, guard, config)
    for index, fetched in _in_threads(fetch, queues, config.threads):
        outcomes[index] = fetched if isinstance(fetched, Refused) else _store(fetched, config, resize)
    return [outcomes[index] for index in range(len(urls))]


# ---- fetching


def _in_threads(
    fetch: Callable[[Target], bytes | Refused], queues: HostQueues, threads: int
) -> Iterator[tuple[int, bytes | Refused]]:
    """Run `fetch` over all that `queues` holds; yields in order of completion, in the calling thread."""
    running: dict[concurrent.futures.Future[bytes | Refused], tuple[int, str]] = {}
    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="crawl")
    try:
        while True:
            while len(running) < 2 * threads and (taken := queues.take()) is not None:
                index, target = taken
                running[pool.submit(fetch, target)] = (index, target.host)
            if not running:
                return
            done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            ended = [(future, *running.pop(future)) for future in done]
            for _, _, host in ended:
                queues.give_back(host)
            for future, index, _ in ended:
                yield index, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(
    download_image: Callable[..., tuple[int, io.BytesIO | None, str | None]],
    guard: Guard,
    config: CrawlConfig,
    target: Target,
) -> bytes | Refused:
    until = time.monotonic() + config.deadline_s
    while True:
        try:
            return _fetch_once(download_image, guard, config, target)
        except Starved:
            if time.monotonic() + WAIT_S > until:
                raise starved(config.deadline_s, config.at_once_key) from None
            time.sleep(WAIT_S)


def _fetch_once(
    download_image: Callable[..., tuple[int, io.BytesIO | None, str | None]],
    guard: Guard,
    config: CrawlConfig,
    target: Target,
) -> bytes | Refused:
    """As `_fetch`; raises Starved for want of files."""
    try:
        refusal = guard.refuse_target(target)
    except OSError:
        raise Starved from None
    if refusal is not None:
        return Refused(*refusal)
    token = config.user_agent_token.lower() if config.user_agent_token else None
    directives = opt_out.DIRECTIVES if config.respect_opt_out else None
    refused = Refused(Reason.CONNECTION, "not tried")
    for _ in range(config.retries + 1):
        try:
            _, stream, message = download_image((0, target.url), config.timeout_s, token, directives)
        except Ended as ended:
            refused = ended.refused
        else:
            if stream is not None:
                return stream.getvalue()
            refused = refused_by(message or "")
        if not _may_pass(refused):
            break
    return refused


def refused_by(message: str) -> Refused:
    """Name what `download_image` says only as free text (the text of whatever exception urllib raised)."""
    status = _STATUS.match(message)
    if status is not None:
        # What follows the number is the server's own words, but for what urllib says of redirects.
        number, words = status.groups()
        if number in _REDIRECTS and words.startswith(urllib.request.HTTPRedirectHandler.inf_msg):
            return Refused(Reason.REDIRECT, "loop, or too many")
        if number in _REDIRECTS and re.search(r" - Redirection to url '.*' is not allowed$", words, re.DOTALL):
            return Refused(Reason.REDIRECT, "to another scheme")
        return Refused(Reason.HTTP_STATUS, number)
    for pattern, reason, detail in _MESSAGES:
        if pattern.search(message):
            return Refused(reason, detail)
    # What is left is an answer that is not HTTP, and rare errors of sockets.
    return Refused(Reason.CONNECTION, " ".join(message.split())[:200])


def _may_pass(refused: Refused) -> bool:
    """Whether asking again at once may help. 429 says that it does not."""
    if refused.reason is Reason.HTTP_STATUS:
        return refused.detail.startswith("5")
    return refused.reason in (Reason.TIMEOUT, Reason.CONNECTION)


# ---- the way out


class Starved(BaseException):
    """The process has no file left to open; not an `Exception` for the reason of `Ended`."""


class Ended(BaseException):
    """Ends a fetch with a named reason.

    Not an `Exception`: `download_image` turns each of those into free text, in which a server could write whatever reason it liked.
    """

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.detail)
        self.refused = refused


def make_opener(guard: Guard, max_bytes: int, agents: Collection[str] | None = None) -> urllib.request.OpenerDirector:
    """An opener for http and https and nothing else: no `file:`, `ftp:`, `data:`, and no proxy, which would resolve and connect for us.

    Redirects are followed unless an X-Robots-Tag opts out for everybody or for one of `agents`; with None nobody looks.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Handler(guard, max_bytes),
        _Redirects(guard, agents),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Handler(urllib.request.AbstractHTTPHandler):
    def __init__(self, guard: Guard, max_bytes: int) -> None:
        super().__init__()
        response_class = _capped(max_bytes)
        # One context for all requests: loading the system's certificates takes 23 ms of CPU.
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        self._plain = functools.partial(_Connection, guard=guard, response_class=response_class, context=None)
        self._tls = functools.partial(_TlsConnection, guard=guard, response_class=response_class, context=context)

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        return self.do_request_(request)

    https_request = http_request

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._plain, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._tls, request)


class _Connection(http.client.HTTPConnection):
    """Connects to addresses that it has just judged, by number: a name that is answered differently next time finds nobody who asks."""

    def __init__(
        self,
        host: str,
        *,
        guard: Guard,
        response_class: type[http.client.HTTPResponse],
        context: ssl.SSLContext | None,
        **options: Any,
    ) -> None:
        super().__init__(host, **options)
        self.response_class = response_class
        self._guard = guard
        self._context = context

    def connect(self) -> None:
        try:
            addresses = self._guard.resolve(self.host)
        except OSError as error:
            if error.errno in OURS:
                raise Starved from None
            raise
        refusal = self._guard.refuse_addresses(addresses)
        if refusal is not None:
            raise Ended(Refused(*refusal))
        failure = OSError("no address")
        for address in addresses:
            try:
                plain = socket.create_connection((str(address), self.port), self.timeout)
            except OSError as error:
                if error.errno in OURS:
                    raise Starved from None
                failure = error
                continue
            # The certificate is held against the name of the URL, not the address.
            self.sock = self._context.wrap_socket(plain, server_hostname=self.host) if self._context else plain
            return
        raise failure


class _TlsConnection(_Connection):
    default_port = http.client.HTTPS_PORT


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only where its target could have stood in the list of URLs."""

    max_redirections = 10
    max_repeats = 1  # nothing is remembered between hops (cookies), so that a second visit ends like the first

    def __init__(self, guard: Guard, agents: Collection[str] | None) -> None:
        self._guard = guard
        self._agents = agents

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if self._agents is not None:
            directive = opt_out.in_headers(headers.get_all("X-Robots-Tag", []), self._agents)
            if directive is not None:
                fp.close()
                raise Ended(Refused(Reason.OPT_OUT, f"X-Robots-Tag: {directive}"))
        try:
            target = parse(newurl)
        except UrlRefused as refused:
            fp.close()
            where = "to another scheme" if refused.reason is Reason.SCHEME else f"to no URL: {refused.detail}"
            raise Ended(Refused(Reason.REDIRECT, where)) from None
        refusal = self._guard.refuse_target(target)
        if refusal is not None:
            fp.close()
            raise Ended(Refused(*refusal))
        return super().redirect_request(req, fp, code, msg, headers, target.url)


def _capped(max_bytes: int) -> type[http.client.HTTPResponse]:
    """Responses whose `read()` holds at most `max_bytes` and the piece that was too much, whatever the server announces."""

    class Capped(http.client.HTTPResponse):
        def begin(self) -> None:
            try:
                super().begin()
            except http.client.RemoteDisconnected:
                raise
            except http.client.HTTPException:
                # Its text is the server's first line, in which it could write whatever reason it liked.
                raise Ended(Refused(Reason.CONNECTION, "not HTTP")) from None

        def read(self, amt: int | None = None) -> bytes:
            if amt is not None:
                return super().read(amt)
            if self.length is not None:
                if self.length > max_bytes:
                    raise Ended(Refused(Reason.TOO_MANY_BYTES, f"{self.length} bytes"))
                return super().read()
            body = bytearray()
            while piece := super().read(1 << 16):
                body += piece
                if len(body) > max_bytes:
                    raise Ended(Refused(Reason.TOO_MANY_BYTES, f"more than {max_bytes} bytes"))
            return bytes(body)

    return Capped


# ---- the stored picture

_Resize = Callable[[io.BytesIO], tuple[bytes | None, int, int, int, int, str | None]]


def _store(data: bytes, config: CrawlConfig, resize: _Resize) -> Outcome:
    examined = examine(data, config)
    if isinstance(examined, Refused):
        return examined
    source = data if is_plain(data) else _upright_copy(data, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one deprecation of albumentations per picture
        image, width, height, _, _, message = resize(io.BytesIO(source))
    if image is None:
        return Refused(Reason.IMAGE_CORRUPT, f"resizer: {message}"[:200])
    return stored(image, width, height, examined, config)


def _upright_copy(data: bytes, config: CrawlConfig) -> bytes:
    """The picture at full size as an upright 8-bit RGB file. BMP: lossless, and its coding is a copy of the memory."""
    picture = decode(data, max_pixels=config.max_pixels)
    file = io.BytesIO()
    PIL.Image.fromarray(picture.rgb).save(file, "BMP")
    return file.getvalue()


def _make_resizer(resizer: ModuleType, config: CrawlConfig) -> _Resize:
    made: _Resize = resizer.Resizer(
        image_size=config.image_size,
        resize_mode=config.resize_mode,
        resize_only_if_bigger=not config.upscale,
        encode_quality=config.quality,
        encode_format="jpg" if config.encode_format == "jpeg" else config.encode_format,
    )
    return made


@functools.lru_cache(maxsize=1)
def _library() -> tuple[ModuleType, ModuleType]:
    """img2dataset's downloader and resizer. Heavy, and it reaches for the network while it is imported unless told not to."""
    require()
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # imghdr is deprecated, and albumentations has things to say
        return importlib.import_module("img2dataset.downloader"), importlib.import_module("img2dataset.resizer")
