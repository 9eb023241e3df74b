"""One unit of the crawl against a real HTTP server on the loopback that plants one trouble per path.

Truth: what was planted (the server's own list of pictures, statuses and hit counts), Pillow's reading of the stored bytes, and
img2dataset's resizer called directly on the source bytes.
"""

import contextlib
import hashlib
import http.server
import importlib.util
import io
import ipaddress
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.content.hashes import picture_hashes
from pipeline.content.image import decode
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import MATCHED_SCHEMA, REJECTED_SCHEMA, SHARD_SCHEMA, Reason, uid
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.guard import Guard
from pipeline.crawl.img2dataset import Ended, make_opener, refused_by, require
from pipeline.crawl.outcome import Refused, Stored
from pipeline.crawl.stage import crawl, domain_counts, image_chunks, partition, split_ways
from pipeline.crawl.stage import require as require_engine
from pipeline.crawl.urls import UrlRefused, parse, registered_domain
from tests.certificates import write_certificate
from tests.pipeline.crawl.hostile import Hostile, whole

LOOPBACK = ("127.0.0.0/8",)


def scene(width: int, height: int) -> PIL.Image.Image:
    """Smooth colours with a bright top left corner, so that orientation shows after any resize and recompression."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 200 / width, y * 200 / height, 100 + 60 * np.sin(x / 40.0)], axis=2).astype(np.uint8)
    pixels[: height // 4, : width // 4] = 255
    return PIL.Image.fromarray(pixels)


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png16(width: int, height: int, value: int) -> bytes:
    """A 16-bit RGB PNG of one colour, written chunk by chunk: Pillow cannot write it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + struct.pack(">H", value) * 3 * width) * height
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def turned_jpeg() -> bytes:
    """640x480 upright with its bright corner top left, stored as a phone would: rows turned, orientation 6."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return encoded(scene(640, 480).transpose(PIL.Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


JPEG = encoded(scene(640, 480), "JPEG", quality=92)
PICTURES: Mapping[str, tuple[str, bytes]] = {
    "/jpeg.jpg": ("image/jpeg", JPEG),
    "/large.jpg": ("image/jpeg", encoded(scene(2048, 1536), "JPEG", quality=92)),
    "/small.jpg": ("image/jpeg", encoded(scene(100, 80), "JPEG", quality=92)),
    "/grey.jpg": ("image/jpeg", encoded(scene(640, 480).convert("L"), "JPEG", quality=92)),
    "/cmyk.jpg": ("image/jpeg", encoded(scene(640, 480).convert("CMYK"), "JPEG", quality=92)),
    "/turned.jpg": ("image/jpeg", turned_jpeg()),
    "/png.png": ("image/png", encoded(scene(400, 300), "PNG")),
    "/alpha.png": ("image/png", encoded(scene(400, 300).convert("RGBA"), "PNG")),
    "/palette.png": ("image/png", encoded(scene(400, 300).convert("P", dither=PIL.Image.Dither.NONE), "PNG")),
    "/deep.png": ("image/png", png16(300, 300, 0x6000)),
    "/webp.webp": ("image/webp", encoded(scene(400, 300), "WEBP", quality=90)),
    "/lying.png": ("image/png", JPEG),
}
BROKEN: Mapping[str, tuple[int, bytes, Mapping[str, str]]] = {
    "/404.jpg": (404, b"gone", {}),
    "/403.jpg": (403, b"no", {}),
    "/429.jpg": (429, b"slowly", {}),
    "/500.jpg": (500, b"oops", {}),
    "/html.jpg": (200, b"<html><body>no picture</body></html>", {"Content-Type": "text/html"}),
    "/empty.jpg": (200, b"", {}),
    "/truncated.jpg": (200, JPEG[: len(JPEG) // 2], {}),
    "/noise.jpg": (200, JPEG[:20] + bytes(range(256)) * 20, {}),
    "/short.jpg": (200, JPEG[:1000], {"Content-Length": str(len(JPEG))}),
    "/noai.jpg": (200, JPEG, {"X-Robots-Tag": "noai"}),
    "/noimageai.jpg": (200, JPEG, {"X-Robots-Tag": "noindex, noimageai"}),
    "/noml.jpg": (200, JPEG, {"X-Robots-Tag": "noml"}),
    "/ours.jpg": (200, JPEG, {"X-Robots-Tag": "testbot: noai"}),
    "/loop.jpg": (302, b"", {"Location": "/loop.jpg"}),
    "/to_file.jpg": (302, b"", {"Location": "file:///etc/passwd"}),
    "/tiny.png": (200, encoded(scene(8, 8), "PNG"), {}),
    "/banner.png": (200, encoded(scene(900, 60), "PNG"), {}),
    "/bomb.png": (200, encoded(PIL.Image.new("L", (1500, 1500)), "PNG"), {}),
    "/fat.bin": (200, JPEG + bytes(300_000), {}),
    "/boast.bin": (200, b"", {"Content-Length": str(10**15)}),
}
CHUNKED: Mapping[str, bytes] = {
    "/chunked.jpg": b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (1000, JPEG[:1000], len(JPEG) - 1000, JPEG[1000:]),
    "/chunked_short.jpg": b"%x\r\n%s\r\n" % (1000, JPEG[:1000]),
    "/chunked_fat.bin": b"%x\r\n%s\r\n" % (1 << 34, bytes(400_000)),
}
ALLOWED_ANYWAY = {"/other_agent.jpg": {"X-Robots-Tag": "otherbot: noai"}, "/nofollow.jpg": {"X-Robots-Tag": "nofollow"}}
EXPECTED_REASONS = {
    "/404.jpg": (Reason.HTTP_STATUS, "404"),
    "/403.jpg": (Reason.HTTP_STATUS, "403"),
    "/429.jpg": (Reason.HTTP_STATUS, "429"),
    "/500.jpg": (Reason.HTTP_STATUS, "500"),
    "/html.jpg": (Reason.NOT_AN_IMAGE, None),
    "/empty.jpg": (Reason.NOT_AN_IMAGE, None),
    "/truncated.jpg": (Reason.IMAGE_TRUNCATED, None),
    "/noise.jpg": (None, None),  # one of the picture's reasons, which one is the decoder's affair
    "/short.jpg": (Reason.CONNECTION, "ended early"),
    "/noai.jpg": (Reason.OPT_OUT, "X-Robots-Tag: noai"),
    "/noimageai.jpg": (Reason.OPT_OUT, "X-Robots-Tag: noindex"),
    "/noml.jpg": (Reason.OPT_OUT, "X-Robots-Tag: noml"),
    "/ours.jpg": (Reason.OPT_OUT, "X-Robots-Tag: noai"),
    "/loop.jpg": (Reason.REDIRECT, None),
    "/to_file.jpg": (Reason.REDIRECT, None),
    "/tiny.png": (Reason.IMAGE_TOO_SMALL, "8x8"),
    "/banner.png": (Reason.ASPECT_RATIO, "900x60"),
    "/bomb.png": (Reason.IMAGE_TOO_LARGE, None),
    "/fat.bin": (Reason.TOO_MANY_BYTES, f"{len(JPEG) + 300_000} bytes"),
    "/slow.jpg": (Reason.TIMEOUT, "timed out"),
    "/closed.jpg": (Reason.CONNECTION, None),
    "/garbage.jpg": (Reason.CONNECTION, None),
}


class Web(http.server.ThreadingHTTPServer):
    """Counts the requests of each path, and how many of `/dwell.jpg` were answered at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Handler)
        self.sent = 0
        self.hits: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()

    def url(self, path: str) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        web = self.server
        with web.lock:
            web.hits[self.path] += 1
            web.agents.add(self.headers["User-Agent"])
        self._answer(self.path.partition("?")[0])

    def _answer(self, path: str) -> None:
        if path in PICTURES:
            kind, body = PICTURES[path]
            self._send(200, body, {"Content-Type": kind})
        elif path in BROKEN:
            self._send(*BROKEN[path])
        elif path in ALLOWED_ANYWAY:
            self._send(200, JPEG, ALLOWED_ANYWAY[path])
        elif path == "/redirect.jpg":
            self._send(301, b"", {"Location": "/jpeg.jpg"})
        elif path == "/a%20b/%C3%A4.jpg":
            self._send(200, JPEG, {})
        elif path == "/slow.jpg":
            time.sleep(1.5)
        elif path == "/closed.jpg":
            self.close_connection = True
        elif path == "/garbage.jpg":
            self.wfile.write(b"this is not HTTP\r\n\r\n")
        elif path == "/to":
            self._send(302, b"", {"Location": urllib.parse.unquote(self.path.partition("?")[2])})
        elif path in CHUNKED:
            self._send(200, CHUNKED[path], {"Transfer-Encoding": "chunked"})
        elif path == "/endless.bin":
            self._without_end(200, {})
        elif path == "/endless_redirect.bin":
            self._without_end(302, {"Location": "/jpeg.jpg"})
        elif path == "/dwell.jpg":
            self._dwell()
            self._send(200, PICTURES["/small.jpg"][1], {})
        else:
            self._send(404, b"", {})

    def _dwell(self) -> None:
        """Count who is here together. It ends before the answer: a client that has its answer may be back at once."""
        web = self.server
        with web.lock:
            web.at_once += 1
            web.most_at_once = max(web.most_at_once, web.at_once)
        time.sleep(0.03)
        with web.lock:
            web.at_once -= 1

    def _without_end(self, status: int, headers: Mapping[str, str]) -> None:
        """A body of no announced length: 64 MiB, or until the client hangs up."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1024):
                self.wfile.write(bytes(1 << 16))
                with self.server.lock:
                    self.server.sent += 1 << 16

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        length = {} if "Transfer-Encoding" in headers else {"Content-Length": str(len(body))}
        for name, value in {**length, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        # A client that has had enough hangs up; that is its good right.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(server: Web) -> Iterator[Web]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(timeout=10)
        server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    with serving(Web()) as server:
        yield server


@pytest.fixture(autouse=True)
def urllib_as_it_was() -> Iterator[None]:
    """The crawl's opener is meant for a worker process; this one goes on to other tests."""
    yield
    urllib.request.install_opener(urllib.request.build_opener())


RUNS_IMG2DATASET = pytest.mark.skipif(sys.version_info >= (3, 13), reason="img2dataset does not import on Python 3.13")


@pytest.fixture(params=["fetch", pytest.param("img2dataset", marks=RUNS_IMG2DATASET)])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def config(engine: str = "fetch", **changes: object) -> CrawlConfig:
    values: dict[str, object] = {
        "engine": engine,
        "unguarded": engine == "img2dataset",
        "host_failures": 1000,
        "concurrency": 16,
        "allow_addresses": LOOPBACK,
        "timeout_s": 10.0,  # a busy machine's pause is no answer of the origin
        "threads": 16,
        "per_host": 8,
        "max_bytes": 300_000,
        "max_pixels": 4_000_000,
        "user_agent_token": "TestBot",
        **changes,
    }
    return CrawlConfig.model_validate(values)


def candidates(pairs: list[tuple[str, str]]) -> pa.Table:
    rows = [
        {
            "uid": uid(url, caption),
            "url": url,
            "caption_raw": caption,
            "page_url": f"http://page.example/{row}",
            "source": f"test#{row}",
            "language": None,
            "caption": caption.strip(),
            "query_ids": [row, row + 1],
        }
        for row, (url, caption) in enumerate(pairs)
    ]
    return pa.Table.from_pylist(rows, schema=MATCHED_SCHEMA)


def test_every_planted_picture_arrives_upright_and_right(web: Web, engine: str) -> None:
    paths = [*PICTURES, *ALLOWED_ANYWAY, "/redirect.jpg", "/a b/ä.jpg"]
    table = candidates([(web.url(path), f" caption of {path}") for path in paths])
    rows, rejected = crawl(table, config(engine))
    assert rejected.num_rows == 0, rejected.to_pylist()
    assert rows.schema == SHARD_SCHEMA
    assert rows["uid"].to_pylist() == sorted(table["uid"].to_pylist())
    assert rows["query_id"].null_count == rows["language"].null_count == rows.num_rows

    asked = {row["url"]: row for row in table.to_pylist()}
    for row in rows.to_pylist():
        for name in ("uid", "caption", "caption_raw", "page_url", "source", "query_ids"):
            assert row[name] == asked[row["url"]][name]
        path = row["url"].removeprefix(web.url(""))
        source = PICTURES.get(path, ("", JPEG))[1]
        whole = decode(source)
        stored = PIL.Image.open(io.BytesIO(row["image"]))
        assert (row["format"], stored.format) == ("jpeg", "JPEG")
        assert (row["width"], row["height"]) == stored.size
        assert (row["original_width"], row["original_height"]) == (whole.original_width, whole.original_height)
        scale = min(1.0, 256 / min(whole.original_width, whole.original_height))
        assert stored.size == (round(whole.original_width * scale), round(whole.original_height * scale))
        assert row["source_sha256"] == hashlib.sha256(source).digest()
        assert row["image_sha256"] == hashlib.sha256(row["image"]).digest()
        known = picture_hashes(decode(source, min_short_side=512))
        assert (row["phash64"], row["pdq256"], row["pdq_quality"]) == (
            known.phash64,
            known.pdq256,
            known.pdq_quality,
        )
        upright = PIL.Image.fromarray(whole.rgb).resize(stored.size, PIL.Image.Resampling.BOX)
        difference = np.abs(np.asarray(stored.convert("RGB"), np.int16) - np.asarray(upright, np.int16))
        assert difference.mean() < 4, path
    assert all("testbot" in agent.lower() for agent in web.agents)


def test_deep_and_turned_pictures_are_not_what_img2dataset_alone_makes_of_them(web: Web, engine: str) -> None:
    rows, _ = crawl(candidates([(web.url("/deep.png"), "deep"), (web.url("/turned.jpg"), "turned")]), config(engine))
    by_caption = {row["caption"]: row for row in rows.to_pylist()}
    deep = np.asarray(PIL.Image.open(io.BytesIO(by_caption["deep"]["image"])))
    assert abs(float(deep.mean()) - 0x60) < 2  # near white (255) without our decoding
    turned = by_caption["turned"]
    assert (turned["width"], turned["height"]) == (341, 256)  # 256 x 341 without
    corner = np.asarray(PIL.Image.open(io.BytesIO(turned["image"])))
    assert corner[:40, :40].min() > 240


@RUNS_IMG2DATASET
def test_plain_sources_are_stored_exactly_as_img2dataset_stores_them(web: Web) -> None:
    paths = ["/jpeg.jpg", "/large.jpg", "/png.png", "/webp.webp", "/grey.jpg"]
    for changes in ({}, {"resize_mode": "center_crop", "image_size": 128, "encode_format": "webp", "quality": 80}):
        settings = config("img2dataset", **changes)
        rows, _ = crawl(candidates([(web.url(path), path) for path in paths]), settings)
        from img2dataset.resizer import Resizer  # already loaded by the crawl

        kind = "jpg" if settings.encode_format == "jpeg" else settings.encode_format
        resizer = Resizer(
            settings.image_size, settings.resize_mode, True, encode_quality=settings.quality, encode_format=kind
        )
        assert rows.num_rows == len(paths)
        for row in rows.to_pylist():
            expected = resizer(io.BytesIO(PICTURES[row["caption"]][1]))
            assert (row["image"], row["width"], row["height"]) == expected[:3]


@pytest.mark.parametrize("mode", ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"])
def test_sizes_of_every_resize_mode(web: Web, mode: str, engine: str) -> None:
    rows, rejected = crawl(candidates([(web.url("/jpeg.jpg"), "x")]), config(engine, resize_mode=mode, image_size=120))
    assert rejected.num_rows == 0
    sizes = {
        "no": (640, 480),
        "keep_ratio": (160, 120),
        "keep_ratio_largest": (120, 90),
        "center_crop": (120, 120),
        "border": (120, 120),
    }
    image = PIL.Image.open(io.BytesIO(rows["image"][0].as_py()))
    assert (rows["width"][0].as_py(), rows["height"][0].as_py()) == image.size == sizes[mode]
    if mode == "border":
        assert np.asarray(image)[:8].min() > 240  # the border is white


def test_every_planted_trouble_is_named(web: Web, engine: str) -> None:
    late = ["/slow.jpg"]
    for paths, timeout_s in ((late, 0.6), ([path for path in EXPECTED_REASONS if path not in late], 10.0)):
        table = candidates([(web.url(path), f"caption of {path}") for path in paths])
        rows, rejected = crawl(table, config(engine, max_pixels=2_000_000, timeout_s=timeout_s))
        assert rows.num_rows == 0, rows.select(["url"]).to_pylist()
        assert rejected.schema == REJECTED_SCHEMA
        assert rejected["uid"].to_pylist() == sorted(table["uid"].to_pylist())
        asked = {row["uid"]: row for row in table.to_pylist()}
        for row in rejected.to_pylist():
            reason, detail = EXPECTED_REASONS[row["url"].removeprefix(web.url(""))]
            if reason is not None:
                assert row["reason"] == reason, row
            if detail is not None:
                # img2dataset does not say which directive it was.
                assert row["detail"] == detail or (engine, row["detail"]) == ("img2dataset", "X-Robots-Tag")
            for name in ("url", "caption_raw", "source", "query_ids"):
                assert row[name] == asked[row["uid"]][name]
    # Only what may pass is asked for again; our engine does not ask again after a timeout.
    again = {"/500.jpg", "/closed.jpg", "/short.jpg", "/garbage.jpg"}
    again |= {"/slow.jpg", "/loop.jpg"} if engine == "img2dataset" else set()
    assert web.hits.pop("/robots.txt", 0) == (2 if engine == "fetch" else 0)  # by each of the two crawls
    assert {path for path, hits in web.hits.items() if hits > 1} == again
    assert {web.hits[path] for path in ("/404.jpg", "/403.jpg", "/429.jpg", "/noai.jpg", "/html.jpg")} == {1}


def test_a_closed_port_and_a_server_without_tls(web: Web, engine: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    urls = [f"http://127.0.0.1:{port}/a.jpg", web.url("/jpeg.jpg").replace("http:", "https:")]
    _, rejected = crawl(candidates([(url, "x") for url in urls]), config(engine, retries=0))
    reasons = {row["url"]: (row["reason"], row["detail"]) for row in rejected.to_pylist()}
    assert reasons[urls[0]] == ("connection", "refused")
    assert reasons[urls[1]] == ("tls", "certificate or handshake")


def test_opt_outs_are_a_setting(web: Web, engine: str) -> None:
    table = candidates([(web.url(path), path) for path in ("/noai.jpg", "/ours.jpg")])
    rows, _ = crawl(table, config(engine, respect_opt_out=False))
    assert rows.num_rows == 2


def test_a_url_is_fetched_once_for_all_its_captions(web: Web, engine: str) -> None:
    pairs = [(web.url("/jpeg.jpg"), f"caption {number}") for number in range(5)]
    pairs += [(web.url("/404.jpg"), f"caption {number}") for number in range(3)]
    rows, rejected = crawl(candidates(pairs), config(engine, threads=4))
    assert (rows.num_rows, rejected.num_rows) == (5, 3)
    robots = {"/robots.txt": 1} if engine == "fetch" else {}
    assert web.hits == {"/jpeg.jpg": 1, "/404.jpg": 1, **robots}
    assert len(set(rows["image"].to_pylist())) == 1
    assert set(rows["caption"].to_pylist()) == {f"caption {number}" for number in range(5)}


def test_refused_urls_meet_no_server(web: Web, tmp_path: object, engine: str) -> None:
    port = web.server_address[1]
    secret = f"{tmp_path}/secret.jpg"
    with open(secret, "wb") as file:
        file.write(JPEG)
    urls = [
        f"file://{secret}",
        f"http://127.0.0.1:{port}/jpeg.jpg",
        f"http://2130706433:{port}/jpeg.jpg",
        f"http://0177.1:{port}/jpeg.jpg",
        f"http://[::ffff:127.0.0.1]:{port}/jpeg.jpg",
        f"http://localhost:{port}/jpeg.jpg",
        f"http://8.8.8.8@127.0.0.1:{port}/jpeg.jpg",
        "data:image/gif;base64,R0lGODlhAQABAAAAACw=",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/a.jpg",
        "not a url",
        "http://no-such-host.invalid/a.jpg",
    ]
    rows, rejected = crawl(candidates([(url, "x") for url in urls]), config(engine, allow_addresses=()))
    assert rows.num_rows == 0
    assert web.hits == {}
    reasons = {row["url"]: row["reason"] for row in rejected.to_pylist()}
    assert [reasons[url] for url in urls] == [
        *["scheme", "address", "address", "address", "address", "address"],
        *["bad_url", "scheme", "address", "address", "bad_url", "dns"],
    ]


# ---- the way out


@contextlib.contextmanager
def listening(host: str) -> Iterator[int]:
    """A port where nobody may knock."""
    with socket.create_server((host, 0)) as listener:
        listener.setblocking(False)
        yield listener.getsockname()[1]
        with pytest.raises(BlockingIOError):
            listener.accept()


def reasons_by_url(table: pa.Table) -> dict[str, tuple[str, str]]:
    return {row["url"]: (row["reason"], row["detail"]) for row in table.to_pylist()}


def test_a_redirect_is_judged_like_a_url_of_the_list() -> None:
    with serving(Web("127.0.0.2")) as web, listening("127.0.0.9") as port:
        expected = {
            f"http://127.0.0.9:{port}/jpeg.jpg": ("address", "127.0.0.9"),
            f"//127.0.0.9:{port}/jpeg.jpg": ("address", "127.0.0.9"),
            f"https://127.0.0.9:{port}/jpeg.jpg": ("address", "127.0.0.9"),
            f"http://2130706441:{port}/jpeg.jpg": ("address", "127.0.0.9"),
            f"http://[::ffff:127.0.0.9]:{port}/jpeg.jpg": ("address", "127.0.0.9"),
            f"http://127.0.0.2:{port}@127.0.0.9:{port}/jpeg.jpg": ("redirect", "to no URL: user name or password"),
            # The second hop is judged as well as the first.
            web.url(f"/to?http://127.0.0.9:{port}/jpeg.jpg"): ("address", "127.0.0.9"),
            "http://169.254.169.254/latest/meta-data/": ("address", "169.254.169.254"),
            "http://no-such-host.invalid/a.jpg": ("dns", "no such name"),
            f"ftp://127.0.0.2:{port}/jpeg.jpg": ("redirect", "to another scheme"),
            "file:///etc/hostname": ("redirect", "to another scheme"),
            "data:image/gif;base64,R0lGODlhAQABAAAAACw=": ("redirect", "to another scheme"),
        }
        urls = {web.url("/to?" + urllib.parse.quote(target, safe="")): reason for target, reason in expected.items()}
        allowed = web.url("/to?" + urllib.parse.quote(web.url("/jpeg.jpg"), safe=""))
        table = candidates([(url, "x") for url in [*urls, allowed]])
        rows, rejected = crawl(table, config(allow_addresses=("127.0.0.2/32",)))
    assert rows["url"].to_pylist() == [allowed]
    found = reasons_by_url(rejected)
    assert {url: found[url][0] for url in urls} == {url: reason for url, (reason, _) in urls.items()}
    # What a resolver says of a name it does not know depends on the network around.
    assert all(found[url] == reason for url, reason in urls.items() if reason[0] != "dns")


def test_hops_are_counted(web: Web, engine: str) -> None:
    def chain(hops: int) -> str:
        """A URL whose query is the rest of the chain, quoted: each hop undoes one layer."""
        target = "/jpeg.jpg"
        for _ in range(hops):
            target = "/to?" + urllib.parse.quote(target, safe="")
        return web.url(target)

    rows, rejected = crawl(candidates([(chain(10), "ten"), (chain(11), "eleven")]), config(engine))
    assert rows["caption"].to_pylist() == ["ten"]
    assert rejected["reason"].to_pylist() == ["redirect"]


def test_a_name_that_changes_its_answer_finds_nobody_who_asks() -> None:
    allowed, refused = (ipaddress.ip_address(text) for text in ("127.0.0.2", "127.0.0.9"))
    with serving(Web("127.0.0.2")) as web, listening("127.0.0.9") as knock:
        answers = iter([[allowed], [allowed], [allowed], [refused], [allowed], [allowed, refused]])
        guard = Guard(("127.0.0.2/32",), resolve=lambda host: next(answers))
        opener = make_opener(guard, 300_000)
        port = web.server_address[1]

        assert guard.refuse(f"http://steady.example:{port}/jpeg.jpg") is None
        with opener.open(f"http://steady.example:{port}/jpeg.jpg", timeout=5) as response:
            assert response.read() == JPEG  # no third question: what was judged is what was connected to
        for host in ("rebinds.example", "mixes.example"):
            assert guard.refuse(f"http://{host}:{knock}/") is None
            with pytest.raises(Ended) as ended:
                opener.open(f"http://{host}:{knock}/", timeout=5)
            assert ended.value.refused == Refused(Reason.ADDRESS, "127.0.0.9")
    assert next(answers, None) is None


def test_the_next_address_is_tried_where_the_first_does_not_answer(web: Web) -> None:
    guard = Guard(LOOPBACK, resolve=lambda host: [ipaddress.ip_address(f"127.0.0.{last}") for last in (7, 1)])
    with make_opener(guard, 300_000).open(f"http://two.example:{web.server_address[1]}/jpeg.jpg", timeout=5) as answer:
        assert answer.read() == JPEG


def test_a_first_line_that_is_no_http_chooses_no_reason() -> None:
    with Hostile(answers={"/words": b"X-Robots-Tag timed out SSL\r\n\r\n"}).running() as web:
        with pytest.raises(Ended) as ended:
            make_opener(Guard(LOOPBACK), 1000).open(web.url("/words"), timeout=5)
        assert ended.value.refused == Refused(Reason.CONNECTION, "not HTTP")


def test_an_opt_out_on_a_redirect_holds() -> None:
    with Hostile().running() as web:
        tags = {"/noai": "noai", "/ours": "ourbot: noindex", "/other": "otherbot: noai"}
        web.answers = {
            "/jpeg": whole(200, JPEG),
            **{path: whole(302, b"", f"X-Robots-Tag: {tag}", "Location: /jpeg") for path, tag in tags.items()},
        }
        opener = make_opener(Guard(LOOPBACK), 1_000_000, ["ourbot"])
        for path, directive in (("/noai", "noai"), ("/ours", "noindex")):
            with pytest.raises(Ended) as ended:
                opener.open(web.url(path), timeout=5)
            assert ended.value.refused == Refused(Reason.OPT_OUT, f"X-Robots-Tag: {directive}")
        assert web.hits[web.hosts[0], "/jpeg"] == 0
        with opener.open(web.url("/other"), timeout=5) as answer:
            assert answer.read() == JPEG
        with make_opener(Guard(LOOPBACK), 1_000_000).open(web.url("/noai"), timeout=5) as answer:
            assert answer.read() == JPEG


def test_only_http_and_https_leave() -> None:
    opener = make_opener(Guard(LOOPBACK), 1000)
    for url in ("file:///etc/hostname", "ftp://127.0.0.1/a", "data:,x"):
        with pytest.raises(urllib.error.URLError, match="unknown url type"):
            opener.open(url)


def test_bodies_are_cut_off_at_the_cap(web: Web, engine: str) -> None:
    paths = {
        "/fat.bin": ("too_many_bytes", f"{len(JPEG) + 300_000} bytes"),
        "/boast.bin": ("too_many_bytes", f"{10**15} bytes"),
        "/endless.bin": ("too_many_bytes", "more than 300000 bytes"),
        "/endless_redirect.bin": ("too_many_bytes", "more than 300000 bytes"),
        "/chunked_fat.bin": ("too_many_bytes", "more than 300000 bytes"),
        "/chunked_short.jpg": ("connection", "ended early"),
    }
    table = candidates([(web.url(path), "x") for path in (*paths, "/chunked.jpg")])
    rows, rejected = crawl(table, config(engine))
    # Our engine reads nothing of a redirect's body, however long it is.
    followed = [web.url("/endless_redirect.bin")] if engine == "fetch" else []
    assert set(rows["url"].to_pylist()) == {web.url("/chunked.jpg"), *followed}
    assert set(rows["source_sha256"].to_pylist()) == {hashlib.sha256(JPEG).digest()}
    expected = {web.url(path): reason for path, reason in paths.items()}
    assert reasons_by_url(rejected) == {url: expected[url] for url in expected if url not in followed}
    assert web.sent < 2 * (16 << 20)  # of 2 x 64 MiB; what was sent beyond the cap lay in the sockets


def test_proxies_of_the_environment_are_not_used(web: Web, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    with listening("127.0.0.1") as port:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        urllib.request.install_opener(urllib.request.build_opener())  # what urllib does by itself reads them
        rows, _ = crawl(candidates([(web.url("/jpeg.jpg"), "x")]), config(engine))
    assert rows.num_rows == 1


def test_certificates_are_held_against_the_name_of_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    write_certificate("localhost", certificate, key)
    server = Web()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    asked: list[str | None] = []
    context.sni_callback = lambda connection, name, _: asked.append(name)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(server):
        port = server.server_address[1]
        good, wrong = f"https://localhost:{port}/jpeg.jpg", f"https://127.0.0.1:{port}/jpeg.jpg"
        settings = config(engine, allow_addresses=(*LOOPBACK, "::1/128"), retries=0, timeout_s=5)
        rows, rejected = crawl(candidates([(good, "x"), (wrong, "x")]), settings)
    assert rows["url"].to_pylist() == [good]
    assert reasons_by_url(rejected) == {wrong: ("tls", "certificate or handshake")}
    assert "localhost" in asked


def test_the_same_origin_gives_the_same_tables_whatever_the_threads(web: Web, engine: str) -> None:
    paths = [path for path in (*PICTURES, *EXPECTED_REASONS) if path != "/slow.jpg"]
    pairs = [(web.url(f"{path}?{number}"), f"{path} {number}") for path in paths for number in range(2)]
    first = crawl(candidates(pairs), config(engine, threads=1, concurrency=1, per_host=4))
    second = crawl(
        candidates(pairs[::-1]).take(pa.array(range(len(pairs) - 1, -1, -1))),
        config(engine, threads=16, concurrency=64),
    )
    for one, other in zip(first, second, strict=True):
        drop = ["source", "page_url", "query_ids"]  # these differ because `candidates` numbers its rows
        assert one.drop_columns([name for name in drop if name in one.column_names]) == other.drop_columns(
            [name for name in drop if name in other.column_names]
        )
    again = crawl(candidates(pairs), config(engine, threads=16, concurrency=64))
    assert again[0] == first[0]
    assert again[1] == first[1]


def test_a_host_is_never_asked_more_at_once_than_its_limit(web: Web, engine: str) -> None:
    table = candidates([(web.url(f"/dwell.jpg?{number}"), "x") for number in range(40)])
    crawl(table, config(engine, threads=16, per_host=3, host_split=1))
    assert web.most_at_once == 3
    web.most_at_once = 0
    crawl(table, config(engine, threads=16, per_host=4, host_split=4), ways={"127.0.0.1": 4})
    assert web.most_at_once == 1


def test_pictures_are_cut_into_chunks_that_arrow_can_hold() -> None:
    pictures = [Stored(bytes(size), "jpeg", 1, 1, 1, 1, b"", b"", 0, b"", 0) for size in (5, 5, 1, 30, 2, 0)]
    chunks = list(image_chunks(pictures, most_bytes=10))
    assert [[len(image) for image in chunk.to_pylist()] for chunk in chunks] == [[5, 5], [1], [30], [2, 0]]
    assert [len(chunk) for chunk in image_chunks([])] == [0]


def test_nothing_in_nothing_out(engine: str) -> None:
    rows, rejected = crawl(MATCHED_SCHEMA.empty_table(), config(engine))
    assert (rows.schema, rejected.schema) == (SHARD_SCHEMA, REJECTED_SCHEMA)
    assert rows.num_rows == rejected.num_rows == 0


def test_importing_the_stage_loads_no_heavy_library() -> None:
    """img2dataset and what it drags along belong to the worker that fetches."""
    code = (
        "import sys, pipeline.crawl.stage, pipeline.crawl.config, pipeline.crawl.guard\n"
        "print(sorted({'pandas', 'wandb', 'albumentations', 'img2dataset', 'cv2', 'ray', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_engine_fetch_runs_wherever_its_libraries_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where img2dataset is not, as on Python 3.13."""
    found = importlib.util.find_spec
    missing = {"img2dataset"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in missing else found(name, *rest))
    require_engine(config())
    told = "'img2dataset' is not installed" if sys.version_info < (3, 13) else "'img2dataset' needs a Python below 3.13"
    with pytest.raises(InputError, match=told):
        require_engine(config("img2dataset"))
    missing.add("aiohttp")
    with pytest.raises(InputError, match="'fetch' needs aiohttp; install"):
        require_engine(config())


def test_python_3_13_is_told_what_to_do() -> None:
    if sys.version_info < (3, 13):
        require()
    with pytest.raises(InputError, match=r"crawl\.engine: 'img2dataset'.*3\.14.*run the crawl with Python"):
        require((3, 14))


@pytest.mark.parametrize(
    ("message", "reason", "detail"),
    [
        ("HTTP Error 404: Not Found", Reason.HTTP_STATUS, "404"),
        # Behind the number stand the server's own words.
        ("HTTP Error 404: X-Robots-Tag", Reason.HTTP_STATUS, "404"),
        ("HTTP Error 404: timed out", Reason.HTTP_STATUS, "404"),
        ("HTTP Error 500: [SSL] connection refused", Reason.HTTP_STATUS, "500"),
        ("HTTP Error 403: would lead to an infinite loop", Reason.HTTP_STATUS, "403"),
        ("HTTP Error 302: timed out", Reason.HTTP_STATUS, "302"),
        (
            f"HTTP Error 302: {urllib.request.HTTPRedirectHandler.inf_msg}Found",
            Reason.REDIRECT,
            "loop, or too many",
        ),
        (
            "HTTP Error 302: Found - Redirection to url 'file:///etc/passwd' is not allowed",
            Reason.REDIRECT,
            "to another scheme",
        ),
        ("HTTP Error 503: Service Unavailable", Reason.HTTP_STATUS, "503"),
        ("<urlopen error [Errno -2] Name or service not known>", Reason.DNS, "no such name"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", Reason.DNS, "no such name"),
        ("<urlopen error [Errno 111] Connection refused>", Reason.CONNECTION, "refused"),
        ("<urlopen error [Errno 113] No route to host>", Reason.CONNECTION, "unreachable"),
        ("[Errno 104] Connection reset by peer", Reason.CONNECTION, "reset"),
        ("<urlopen error timed out>", Reason.TIMEOUT, "timed out"),
        ("The read operation timed out", Reason.TIMEOUT, "timed out"),
        ("<urlopen error [Errno 110] Connection timed out>", Reason.TIMEOUT, "timed out"),
        ("<urlopen error _ssl.c:989: The handshake operation timed out>", Reason.TIMEOUT, "timed out"),
        (
            "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired (_ssl.c:1006)>",
            Reason.TLS,
            "certificate or handshake",
        ),
        ("<urlopen error [SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)>", Reason.TLS, None),
        ("Use of image disallowed by X-Robots-Tag directive", Reason.OPT_OUT, None),
        ("IncompleteRead(10 bytes read, 90 more expected)", Reason.CONNECTION, "ended early"),
        ("", Reason.CONNECTION, ""),
    ],
)
def test_messages_of_urllib_are_named(message: str, reason: Reason, detail: str | None) -> None:
    refused = refused_by(message)
    assert refused.reason is reason
    assert detail is None or refused.detail == detail


# ---- units


def test_a_unit_owns_its_domains() -> None:
    urls = [
        f"http://{host}.site{number}.co.uk/{row}" for number in range(200) for host in ("a", "B") for row in range(3)
    ]
    urls += [f"https://site{number}.co.uk:8443/x" for number in range(200)]
    units = partition(pa.array(urls), 8).to_pylist()
    owners: dict[str, set[int]] = {}
    for url, unit in zip(urls, units, strict=True):
        owners.setdefault(url.split("/")[2].split(":")[0].split("site")[1], set()).add(unit)
    assert len(owners) == 200
    assert all(len(owner) == 1 for owner in owners.values())
    assert set(units) == set(range(8))
    # Row by row it is the same as all at once, and in chunks.
    assert [partition(pa.array([url]), 8)[0].as_py() for url in urls[:50]] == units[:50]
    assert partition(pa.chunked_array([urls[:7], urls[7:]]), 8).to_pylist() == units


@settings(max_examples=1000, deadline=None)
@given(st.text(st.sampled_from("htp:/?#@.ab \t\r\n\x00\\ß。"), max_size=16))
def test_the_host_that_is_fetched_is_the_host_that_the_unit_owns(text: str) -> None:
    """However it is written: tabs and line ends are left out of a URL wherever they stand."""
    urls = [text, f"http:/{text}", f"http://{text}", f"http:/\n/{text}", f"ht\ntp:\t//a.org{text}"]
    for url in urls:
        try:
            host = parse(url).host
        except UrlRefused:
            continue
        assert domain_counts(pa.array([url])) == {registered_domain(host): 1}
        assert partition(pa.array([url]), 1000).equals(
            partition(pa.array([f"http://[{host}]/" if ":" in host else f"http://{host}/"]), 1000)
        )


def test_a_large_domain_is_spread_over_neighbours() -> None:
    urls = [f"http://cdn{number % 7}.big.com/{number}.jpg" for number in range(9000)]
    urls += [f"http://small{number}.org/x" for number in range(1000)]
    counts = domain_counts(pa.array(urls))
    assert counts["big.com"] == 9000
    assert sum(counts.values()) == 10000
    ways = split_ways(counts, units=20, host_split=4)
    assert ways == {"big.com": 4}
    units = partition(pa.array(urls), 20, ways)
    spread = Counter(units.to_pylist()[:9000])
    assert len(spread) == 4
    assert min(spread.values()) > 2000
    first = sorted(spread)
    assert any({(start + step) % 20 for step in range(4)} == set(first) for start in range(20))
    assert units.type == pa.int32()


def test_urls_that_do_not_parse_are_spread_over_all_units() -> None:
    urls = [None, "", *[f"no url {number}" for number in range(200)], *[f"file:///{n}" for n in range(200)]]
    units = partition(pa.array(urls, pa.string()), 4).to_pylist()
    assert set(units) == {0, 1, 2, 3}
    assert domain_counts(pa.array(urls, pa.string())) == {}


def test_the_units_of_today_are_the_units_of_tomorrow() -> None:
    """A resumed crawl finds its units again: these values may never change within a format version."""
    urls = ["http://example.com/a", "https://www.example.com/b", "http://example.org/", "http://10.0.0.1/x", "nonsense"]
    assert partition(pa.array(urls), 1000).to_pylist() == [875, 875, 716, 11, 93]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"per_host": 2}, "host_split=4"),
        ({"encode_format": "png"}, "0 to 9"),
        ({"quality": 0}, "1 to 100"),
        ({"engine": "wget"}, "img2dataset"),
        ({"user_agent_token": "two words"}, "pattern"),
    ],
)
def test_settings_that_do_not_fit_together(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CrawlConfig.model_validate(changes)
