"""What the server of a web answers: bodies, headers and misbehaviour, as a pure function of the plan and the path.

Separate from the server so that a test can take the true bytes of a picture without asking over the network.
"""

import functools
import html
import re
import zlib
from dataclasses import dataclass, field

from tests.web import scenes
from tests.web.dice import Dice
from tests.web.site import Kind, Web

PAGE_ROWS = 20
_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_PICTURE_PATH = re.compile(r"/p/(\d+)\.\w+(?:\?step=(\d+))?")
_PAGE_PATH = re.compile(r"/page/(\d+)\.html")
_NEAR_COPIES = ((0.9, 75), (0.9, 60), (1.0, 50))  # scale and JPEG quality


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. `k` is the row it was for (None: a page). `late`: send it only after the web's `hang_s`.

    `promised`: the Content-Length to announce, where it is not the body's; the connection is then closed.
    """

    status: int
    body: bytes = b""
    content_type: str = "text/html; charset=utf-8"
    headers: dict[str, str] = field(default_factory=dict)
    k: int | None = None
    late: bool = False
    promised: int | None = None


def answer(web: Web, path: str) -> Answer:
    """The answer to GET `path` (with its query); the host plays no part."""
    found = _PICTURE_PATH.fullmatch(path)
    if found and int(found[1]) < web.pairs:
        return _picture_answer(web, int(found[1]), int(found[2] or 0))
    found = _PAGE_PATH.fullmatch(path)
    if found and int(found[1]) < page_count(web):
        return Answer(200, page(web, int(found[1])))
    if path == "/robots.txt":
        return Answer(200, b"User-agent: *\nAllow: /\n", "text/plain")
    return Answer(404, b"<h1>not found</h1>")


def _picture_answer(web: Web, k: int, step: int) -> Answer:
    kind = web.kind(k)
    dice = Dice(web.seed, "answer", k)
    if kind is Kind.NOT_FOUND:
        return Answer(dice.pick((404, 404, 410, 403)), b"<h1>gone</h1>", k=k)
    if kind is Kind.SERVER_ERROR:
        return Answer(dice.pick((500, 503)), b"<h1>our fault</h1>", k=k)
    if kind is Kind.HANGS:
        return Answer(200, picture(web, k), "image/jpeg", k=k, late=True)
    if kind is Kind.LOOP:
        return Answer(302, headers={"Location": f"/p/{k}.jpg?step={1 - min(step, 1)}"}, k=k)
    if kind is Kind.REDIRECTED and step < dice.number(1, 3):
        there = f"http://{web.host(k + step + 1)}:{web.port}/p/{k}.jpg?step={step + 1}"
        return Answer(dice.pick((301, 302, 307, 308)), headers={"Location": there}, k=k)
    if kind is Kind.HTML:
        return Answer(200, b"<!doctype html><title>Sorry</title><p>This picture has moved.", "image/jpeg", k=k)
    body = picture(web, k)
    if kind is Kind.OPT_OUT:
        tag = dice.pick(("noai", "noimageai", "noai, noimageai"))
        return Answer(200, body, "image/jpeg", {"X-Robots-Tag": tag}, k)
    if kind is Kind.HARMLESS_HEADER:
        return Answer(200, body, "image/jpeg", {"X-Robots-Tag": "max-image-preview:large"}, k)
    if kind is Kind.CUT_OFF:
        return Answer(200, body[: len(body) // 2], "image/jpeg", k=k, promised=len(body))
    return Answer(200, body, _content_type(web, k, kind), k=k)


def _content_type(web: Web, k: int, kind: Kind) -> str:
    return _TYPES[web.scene(k).encoding] if kind in (Kind.PLAIN, Kind.COPY) else "image/jpeg"


def picture(web: Web, k: int) -> bytes:
    """The file behind row k: of a plain row or a copy in its scene's own encoding, else as its kind wants it."""
    kind, scene = web.kind(k), web.scene(k)
    dice = Dice(web.seed, "file", k)
    if kind in (Kind.PLAIN, Kind.COPY, Kind.REPEATED, Kind.SECOND_CAPTION):
        return scenes.picture_bytes(scene)
    if kind is Kind.NEAR:
        return scenes.smaller_copy(scene, *dice.pick(_NEAR_COPIES))
    if kind is Kind.MISLABELLED:
        return scenes.encode(scenes.draw(scene), "png")
    if kind is Kind.BOMB:
        return bomb()
    if kind is Kind.TINY:
        side = dice.number(1, 12)
        return scenes.encode(scenes.draw(scene).resize((side, side)), "png")
    if kind is Kind.BANNER:
        return scenes.encode(scenes.draw(scene).resize((900, 60)), "jpeg")
    if kind is Kind.CORRUPT:
        return _corrupt(scenes.encode(scenes.draw(scene), "png"))
    data = scenes.encode(scenes.draw(scene), "jpeg")
    if kind is Kind.TRUNCATED:
        return data[: len(data) * dice.number(30, 80) // 100]
    if kind is Kind.OVERSIZED:
        return data + bytes(web.oversize_bytes - len(data))
    return data


@functools.cache
def bomb() -> bytes:
    """A valid PNG of 16,000 x 16,000 black pixels (256 million, one bit each) in about 150 kB.

    Written by hand because Pillow takes a second for it, which a busy server would spend while others wait.
    """
    side = 16_000
    header = side.to_bytes(4) * 2 + bytes((1, 0, 0, 0, 0))
    pixels = zlib.compress(bytes(side * (1 + side // 8)), 1)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    framed = (len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _corrupt(data: bytes) -> bytes:
    """A PNG whose chunks are all there, but whose compressed pixels begin with bytes that no zlib stream begins with."""
    pixels = data.index(b"IDAT") + 4
    return data[:pixels] + b"\xff" * 64 + data[pixels + 64 :]


# ---- pages


def page_count(web: Web) -> int:
    """Pages that together show every row once."""
    return -(-web.pairs // PAGE_ROWS)


def page(web: Web, number: int) -> bytes:
    """HTML page `number`, with the pictures of PAGE_ROWS rows and their captions as alt texts."""
    lines = [
        "<!doctype html>",
        "<html lang=en><head><meta charset=utf-8>",
        f"<title>Page {number}</title></head><body>",
    ]
    for row in web.rows(number * PAGE_ROWS, min(web.pairs, (number + 1) * PAGE_ROWS)):
        source = "" if row.url is None else f' src="{html.escape(row.url)}"'
        alt = "" if row.caption is None else f' alt="{html.escape(row.caption)}"'
        lines.append(f"<p><img{source}{alt}></p>")
    if number + 1 < page_count(web):
        lines.append(f'<a href="/page/{number + 1}.html">next</a>')
    return "\n".join([*lines, "</body></html>"]).encode()
