"""WAT files as source rows: the links that Common Crawl extracts from its pages, a tenth of the bytes of the pages themselves.

A WAT is a WARC file whose `metadata` records hold one JSON object each. An image is a link whose path is `IMG@/src`, with the `alt` and
`title` of its element: no srcset, no lazy loader's attributes and no captions of figures, which only the pages have. The page's URL,
`<base>`, robots meta elements and response headers stand beside. Written after commoncrawl/ia-web-commons,
org/archive/resource/html/ExtractingParseObserver.java and HTMLMetaData.java. `source` is `name#offset:text` as for pages; the record's
`Container` would lead to the WARC.

A file without link records (there are such) gives no rows, and the log says so.
"""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.content import opt_out
from pipeline.contracts.schema import Reason
from pipeline.sources import page
from pipeline.sources.files import Row, SourceFile, SourcesConfig, bounded, table_of
from pipeline.sources.records import Damage, Record, records
from pipeline.sources.urls import without_data

MAX_RECORD = 32 << 20
"""Bytes of one record's JSON; a longer one is one bad row."""
_IMAGE = "IMG@/src"

logger = logging.getLogger(__name__)


def read(file: SourceFile, config: SourcesConfig) -> pa.Table:
    """The rows of a WAT file as a table of SOURCE_SCHEMA, in the order of the file. All of them are held at once."""
    table = table_of(bounded(_rows(file, config), config))
    if not table.num_rows:
        logger.info("%s: no image links in the file", file.name)
    return table


def _rows(file: SourceFile, config: SourcesConfig) -> Iterator[Row]:
    for record in records(file.uri):
        if isinstance(record, Damage):
            yield Row(None, None, None, f"{file.name}#{record.offset}", problem=f"damaged archive: {record.said}")
        elif record.kind == "metadata" and record.content_type == "application/json":
            yield from _record_rows(record, file, config)


def _record_rows(record: Record, file: SourceFile, config: SourcesConfig) -> Iterator[Row]:
    place = f"{file.name}#{record.offset}"
    if record.length > MAX_RECORD:
        problem = f"a record of {record.length:,} bytes, more than {MAX_RECORD:,}"
        yield Row(None, None, record.url, place, problem=problem)
        return
    try:
        envelope = json.loads(record.read(MAX_RECORD))
    except (ValueError, RecursionError) as error:
        yield Row(None, None, record.url, place, problem=f"json: {str(error)[:200]}")
        return
    answer = _inside(envelope, "Envelope", "Payload-Metadata", "HTTP-Response-Metadata")
    links = _inside(answer, "HTML-Metadata").get("Links")
    links = links if isinstance(links, list) else []
    images = [link for link in links if isinstance(link, dict) and link.get("path") == _IMAGE]
    if not images:
        return
    found = _text(_inside(envelope, "Envelope", "WARC-Header-Metadata").get("WARC-Target-URI")) or record.url
    most = config.max_url_bytes
    if len(found.encode()) > most:
        problem = f"the page's URL has more than {most:,} bytes"
        yield Row(None, None, None, place, reason=Reason.BAD_URL.value, problem=problem)
        return
    head = _inside(answer, "HTML-Metadata", "Head")
    base = page.base_url(found, _text(head.get("Base")) or "", most)
    asked = _asks_not(answer, head, config)
    reason = None if asked is None else Reason.OPT_OUT.value
    for link in images[: config.max_images_per_page]:
        texts = ((name, _text(link.get(name))) for name in ("alt", "title"))
        text_from, caption = next(((name, text) for name, text in texts if text and text.strip()), ("none", None))
        url = without_data(page.join_bounded(base, _text(link.get("url")) or "", most))
        yield Row(url, caption, found, f"{place}:{text_from}", reason=reason, problem=asked)
    if (left := len(images) - config.max_images_per_page) > 0:
        told = f"{left:,} more images on the page than {config.max_images_per_page:,}"
        yield Row(None, None, found, place, reason=reason, problem=asked or told)


def _asks_not(answer: dict[str, Any], head: dict[str, Any], config: SourcesConfig) -> str | None:
    """The page's opt-out in words, or None."""
    if not config.respect_opt_out:
        return None
    agents = config.opt_out_agents
    for name, value in _inside(answer, "Headers").items():
        if name.lower() == "x-robots-tag":
            values = value if isinstance(value, list) else [value]
            if (asked := opt_out.in_headers([text for one in values if (text := _text(one))], agents)) is not None:
                return f"X-Robots-Tag: {asked}"
    metas = head.get("Metas")
    for meta in metas if isinstance(metas, list) else []:
        if isinstance(meta, dict):
            asked = opt_out.in_meta(_text(meta.get("name")) or "", _text(meta.get("content")) or "", agents)
            if asked is not None:
                return f"meta robots: {asked}"
    return None


def _inside(value: object, *names: str) -> dict[str, Any]:
    """The object that the names lead to; an empty one where the way is not there."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    """A text that Arrow can hold; None for anything else (JSON may hold lone surrogates)."""
    if not isinstance(value, str):
        return None
    return value if value.isascii() else value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
