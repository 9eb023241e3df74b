"""Web archives as source rows: one row for each image reference on each HTML page of a WARC or ARC file.

A page is a `response` with status 200, or a `resource`, whose type is HTML. Where the same file also holds the picture that a reference
means (an answer of 200 with an image's type, or an image `resource`), the row's `archived` names that record, and nobody needs to be asked
for it. URLs are compared after percent-encoding what browsers would encode. `source` is `name#offset:text`: where the page's record starts
in the file, and which text became the caption (see `page`).

What is found and does not become a row with a URL is a row with a problem: a page whose encoding cannot be undone, a damaged place, the
images behind the limit of one page; an opt-out rejects each row of its page.
"""

from collections.abc import Iterator

import pyarrow as pa

from pipeline.content import opt_out
from pipeline.contracts.schema import Reason
from pipeline.sources import page
from pipeline.sources.files import SOURCE_SCHEMA, Row, SourceFile, SourcesConfig, table_of
from pipeline.sources.records import MAX_HEADER, Damage, Http, Record, is_start, parse_http, records
from pipeline.sources.urls import picture_key, without_data

HTML = ("text/html", "application/xhtml+xml")


def read(file: SourceFile, config: SourcesConfig) -> pa.Table:
    """The rows of an archive as a table of SOURCE_SCHEMA, in the order of the file. All of them are held at once."""
    pictures: dict[str, int] = {}
    table = table_of(_rows(file, config, pictures))
    if not pictures:
        return table
    found = [None if url is None else pictures.get(picture_key(url)) for url in table["url"].to_pylist()]
    # In an archive that is compressed as a whole an offset leads nowhere: there the pictures are fetched.
    starts = {offset for offset in set(found) if offset is not None and is_start(file.uri, offset)}
    archived = [f"record:{offset}" if offset in starts else None for offset in found]
    return table.set_column(SOURCE_SCHEMA.get_field_index("archived"), "archived", pa.array(archived, pa.string()))


def _rows(file: SourceFile, config: SourcesConfig, pictures: dict[str, int]) -> Iterator[Row]:
    for record in records(file.uri):
        if isinstance(record, Damage):
            yield Row(None, None, None, f"{file.name}#{record.offset}", problem=f"damaged archive: {record.said}")
        elif record.url.lower().startswith(("http://", "https://")) and record.kind in ("response", "resource"):
            yield from _record_rows(record, file, config, pictures)


def _record_rows(record: Record, file: SourceFile, config: SourcesConfig, pictures: dict[str, int]) -> Iterator[Row]:
    if record.kind == "resource":
        if record.content_type.startswith("image/"):
            pictures.setdefault(picture_key(record.url), record.offset)
        elif record.content_type in HTML:
            html = record.read(config.max_page_bytes)
            yield from _page_rows(record, Http(200, [], html), None, file, config)
        return
    head = record.read(MAX_HEADER)
    answer = parse_http(_head_only(head), 0)
    if answer is None or answer.status != 200:
        return
    content_type, charset = _content_type(answer)
    if content_type.startswith("image/"):
        # One whose server asked not to use it is not taken from here: the crawl will hear what the server says today.
        if (
            not config.respect_opt_out
            or opt_out.in_headers(answer.values("x-robots-tag"), config.opt_out_agents) is None
        ):
            pictures.setdefault(picture_key(record.url), record.offset)
    elif content_type in HTML:
        answer = parse_http(head + record.read(config.max_page_bytes), config.max_page_bytes)
        if answer is None:
            problem = "the page's content or transfer coding cannot be undone"
            yield Row(None, None, record.url, f"{file.name}#{record.offset}", problem=problem)
        else:
            yield from _page_rows(record, answer, charset, file, config)


def _head_only(block: bytes) -> bytes:
    """The status line and headers of an answer, with an empty body whose codings no longer matter."""
    ends = [end for sign in (b"\r\n\r\n", b"\n\n") if (end := block.find(sign)) >= 0]
    head = block[: min(ends)] if ends else block
    lines = [
        line for line in head.split(b"\n") if not line.lower().startswith((b"content-encoding", b"transfer-encoding"))
    ]
    return b"\r\n".join(line.rstrip(b"\r") for line in lines) + b"\r\n\r\n"


def _content_type(answer: Http) -> tuple[str, str | None]:
    """The media type and the charset, in lower case, of the last Content-Type header."""
    values = answer.values("content-type")
    kind, *parameters = (values[-1] if values else "").lower().split(";")
    named = (part.partition("=") for part in parameters)
    charset = next((value.strip(" \"'") for name, _, value in named if name.strip() == "charset"), None)
    return kind.strip(), charset


def _page_rows(
    record: Record, answer: Http, charset: str | None, file: SourceFile, config: SourcesConfig
) -> Iterator[Row]:
    agents = config.opt_out_agents
    found = page.read(answer.body, record.url, charset, config.max_images_per_page, agents)
    reason = problem = None
    if config.respect_opt_out:
        in_header = opt_out.in_headers(answer.values("x-robots-tag"), agents)
        if in_header is not None or found.opt_out is not None:
            reason = Reason.OPT_OUT.value
            problem = f"X-Robots-Tag: {in_header}" if in_header is not None else f"meta robots: {found.opt_out}"
    place = f"{file.name}#{record.offset}"
    for reference in found.references:
        yield Row(
            without_data(reference.url),
            reference.caption,
            record.url,
            f"{place}:{reference.text_from}",
            reason=reason,
            problem=problem,
        )
    if found.left:
        told = f"{found.left:,} more images on the page than {config.max_images_per_page:,}"
        yield Row(None, None, record.url, place, reason=reason, problem=problem or told)
