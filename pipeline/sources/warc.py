"""Web archives as source rows: one row for each image reference on each HTML page of a WARC or ARC file.

A page is a `response` with status 200, or a `resource`, whose type is HTML. Where the same file also holds the picture that a reference
means (an answer of 200 with an image's type, or an image `resource`), the row's `archived` names that record, and nobody needs to be asked
for it. URLs are compared after percent-encoding what browsers would encode. `source` is `name#offset:text`: where the page's record starts
in the file, and which text became the caption (see `page`).

What is found and does not become a row with a URL is a row with a problem: a page whose encoding cannot be undone, one with an over-long
URL, one that costs too much to parse (`page_process`), a damaged place, the images behind the limit of one page; an opt-out rejects each
row of its page.
"""

import contextlib
from collections.abc import Iterator

import pyarrow as pa

from pipeline.content import opt_out
from pipeline.contracts.schema import Reason
from pipeline.sources.files import SOURCE_SCHEMA, Row, SourceFile, SourcesConfig, bounded, table_of
from pipeline.sources.page import Limits
from pipeline.sources.page_process import TOO_MUCH, PageProcess
from pipeline.sources.records import MAX_HEADER, Damage, Http, Record, parse_http, records
from pipeline.sources.urls import picture_key, without_data

HTML = ("text/html", "application/xhtml+xml")


def read(file: SourceFile, config: SourcesConfig) -> pa.Table:
    """The rows of an archive as a table of SOURCE_SCHEMA, in the order of the file. All of them are held at once."""
    pictures: dict[str, int] = {}
    with PageProcess(Limits.of(config)) as pages:
        table = table_of(bounded(_rows(file, config, pages, pictures), config))
    if not pictures:
        return table
    keys = [None if url is None else picture_key(url) for url in table["url"].to_pylist()]
    places = {
        key: f"record:{offset}"
        for key in dict.fromkeys(keys)
        if key is not None and (offset := pictures.get(key)) is not None and _leads_to(file.uri, offset, key)
    }
    archived = pa.array([None if key is None else places.get(key) for key in keys], pa.string())
    return table.set_column(SOURCE_SCHEMA.get_field_index("archived"), "archived", archived)


def _leads_to(uri: str, offset: int, key: str) -> bool:
    """Whether reading from `offset` begins with the picture's record. Where a compressed archive holds several records a member, it may
    not, and the picture is fetched."""
    if not uri.lower().endswith((".gz", ".zst")):
        return True
    with contextlib.closing(records(uri, offset)) as found:
        record = next(found, None)
        return isinstance(record, Record) and picture_key(record.url) == key


def _rows(file: SourceFile, config: SourcesConfig, pages: PageProcess, pictures: dict[str, int]) -> Iterator[Row]:
    for record in records(file.uri):
        if isinstance(record, Damage):
            yield Row(None, None, None, f"{file.name}#{record.offset}", problem=f"damaged archive: {record.said}")
        elif record.url.lower().startswith(("http://", "https://")) and record.kind in ("response", "resource"):
            yield from _record_rows(record, file, config, pages, pictures)


def _record_rows(
    record: Record, file: SourceFile, config: SourcesConfig, pages: PageProcess, pictures: dict[str, int]
) -> Iterator[Row]:
    known = len(record.url) <= config.max_url_bytes  # a longer one is no reference's
    if record.kind == "resource":
        if record.content_type.startswith("image/") and known:
            pictures.setdefault(picture_key(record.url), record.offset)
        elif record.content_type in HTML:
            html = record.read(config.max_page_bytes)
            yield from _page_rows(record, Http(200, [], html), None, file, config, pages)
        return
    head = record.read(MAX_HEADER)
    answer = parse_http(head, 0)
    if answer is None or answer.status != 200:
        return
    content_type, charset = _content_type(answer)
    if content_type.startswith("image/") and known:
        # One whose server asked not to use it is not taken from here: the crawl will hear what the server says today.
        if (
            not config.respect_opt_out
            or opt_out.in_headers(answer.values("x-robots-tag"), config.opt_out_agents) is None
        ):
            pictures.setdefault(picture_key(record.url), record.offset)
    elif content_type in HTML:
        answer = parse_http(head + record.read(config.max_page_bytes), config.max_page_bytes)
        yield from _page_rows(record, answer, charset, file, config, pages)


def _content_type(answer: Http) -> tuple[str, str | None]:
    """The media type and the charset, in lower case, of the last Content-Type header."""
    values = answer.values("content-type")
    kind, *parameters = (values[-1] if values else "").lower().split(";")
    named = (part.partition("=") for part in parameters)
    charset = next((value.strip(" \"'") for name, _, value in named if name.strip() == "charset"), None)
    return kind.strip(), charset


def _page_rows(
    record: Record,
    answer: Http | None,
    charset: str | None,
    file: SourceFile,
    config: SourcesConfig,
    pages: PageProcess,
) -> Iterator[Row]:
    place = f"{file.name}#{record.offset}"
    if len(record.url.encode()) > config.max_url_bytes:
        problem = f"the page's URL has more than {config.max_url_bytes:,} bytes"
        yield Row(None, None, None, place, reason=Reason.BAD_URL.value, problem=problem)
        return
    if answer is None:
        problem = "the page's content or transfer coding cannot be undone"
        yield Row(None, None, record.url, place, problem=problem)
        return
    found = pages.read(answer.body, record.url, charset)
    if found is None:
        yield Row(None, None, record.url, place, problem=TOO_MUCH)
        return
    asked = None
    if config.respect_opt_out:
        in_header = opt_out.in_headers(answer.values("x-robots-tag"), config.opt_out_agents)
        if in_header is not None:
            asked = f"X-Robots-Tag: {in_header}"
        elif found.opt_out is not None:
            asked = f"meta robots: {found.opt_out}"
    reason = None if asked is None else Reason.OPT_OUT.value
    for reference in found.references:
        yield Row(
            without_data(reference.url),
            reference.caption,
            record.url,
            f"{place}:{reference.text_from}",
            reason=reason,
            problem=asked,
        )
    if found.left:
        told = f"{found.left:,} more images on the page than {config.max_images_per_page:,}"
        yield Row(None, None, record.url, place, reason=reason, problem=asked or told)
