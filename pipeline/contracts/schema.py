"""The rows that the packages hand to each other: Arrow schemas, the closed list of rejections, identity and choice.

`contracts/README.md` is the specification for readers in other languages; this file is what the code imports.
"""

import enum
import hashlib
from collections.abc import Iterable

import pyarrow as pa

FORMAT_VERSION = 1
"""Version of the shard format. A reader refuses a corpus of another version (see contracts/README.md, History)."""

CANDIDATE_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("caption_raw", pa.string(), nullable=False),
        pa.field("page_url", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("archived", pa.string()),
    ]
)
"""A pair that was found but not fetched. `source` is `name#place`, the same wherever the source file is stored: a row's number, or a
record's offset and which text of the page became the caption. `archived` says where in that file the picture's bytes are; null: fetch
them."""

MATCHED_SCHEMA = pa.schema(
    [
        *CANDIDATE_SCHEMA,
        pa.field("caption", pa.string(), nullable=False),
        pa.field("query_ids", pa.list_(pa.int32()), nullable=False),
    ]
)
"""A candidate whose cleaned caption matched at least one query."""

SHARD_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("caption_raw", pa.string()),
        pa.field("image", pa.binary()),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("original_width", pa.int32()),
        pa.field("original_height", pa.int32()),
        pa.field("source_sha256", pa.binary(32)),
        pa.field("image_sha256", pa.binary(32)),
        pa.field("phash64", pa.uint64()),
        pa.field("pdq256", pa.binary(32)),
        pa.field("pdq_quality", pa.uint8()),
        pa.field("query_ids", pa.list_(pa.int32())),
        pa.field("query_id", pa.int32()),
        pa.field("page_url", pa.string()),
        pa.field("source", pa.string()),
        pa.field("language", pa.string()),
    ]
)
"""A row of a shard. Every column is always present; what is unknown is null."""

INDEX_SCHEMA = pa.schema([field for field in SHARD_SCHEMA if field.name != "image"])
"""A row of a shard's `.index.parquet`: everything but the picture, in the shard's order."""


class Reason(enum.StrEnum):
    """Why a row was left out. The list is closed: a stage that needs another word adds it here, with its meaning."""

    # candidates
    BAD_ROW = "bad_row"  # the line of the source file does not parse
    BAD_URL = "bad_url"  # no URL, or one that does not parse
    SCHEME = "scheme"  # not http or https
    NO_CAPTION = "no_caption"  # the source has no caption for this URL
    CAPTION_TOO_LONG = "caption_too_long"
    # exact, exact-url, exact-source, filter, precap, balance
    DUPLICATE_PAIR = "duplicate_pair"  # the same URL and raw caption were seen before
    DUPLICATE_URL = "duplicate_url"  # the same URL with another caption (dedup.exact)
    DUPLICATE_SOURCE = "duplicate_source"  # the same bytes were fetched for another row (dedup.exact)
    EMPTY_CAPTION = "empty_caption"  # nothing is left after cleaning
    CAPTION_LENGTH = "caption_length"  # too few or too many characters or words; the detail says which
    LANGUAGE = "language"  # not in a language that is asked for; the detail is the language
    NOT_NATURAL_LANGUAGE = (
        "not_natural_language"  # a file name, a date, an address, a number, …; the detail is the rule
    )
    NO_QUERY = "no_query"  # matches no query of the list
    OVER_CAP = "over_cap"  # its query already has its N pairs
    NOT_DRAWN = "not_drawn"  # balance.mode = "metaclip": none of its queries drew it
    # crawl: before the connection
    ADDRESS = "address"  # the host is, or resolves to, an address that is not public
    DNS = "dns"  # the host does not resolve
    # crawl: the exchange
    CONNECTION = "connection"  # refused, reset, or ended early
    TLS = "tls"  # the certificate or the handshake failed
    TIMEOUT = "timeout"
    REDIRECT = "redirect"  # too many of them, a loop, or one to another scheme
    HTTP_STATUS = "http_status"  # an answer that is no success; the detail is its number
    OPT_OUT = "opt_out"  # the server or the page asks not to be used
    TOO_MANY_BYTES = "too_many_bytes"
    # crawl: the picture
    NO_IMAGE = "no_image"  # the source says that there is none: a sample, or a cell, without a picture
    NOT_AN_IMAGE = "not_an_image"
    IMAGE_FORMAT = "image_format"  # a picture, but of a format that is not on the allow-list
    IMAGE_TOO_LARGE = (
        "image_too_large"  # by its header, before decoding; or its sides are more than the stored format holds
    )
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_CORRUPT = "image_corrupt"
    IMAGE_TOO_SMALL = "image_too_small"
    ASPECT_RATIO = "aspect_ratio"
    DECODER_CRASHED = "decoder_crashed"  # this row ended its worker process
    # policy
    POLICY = "policy"  # a configured hook refused it; the detail is its name and its verdict
    # dedup
    NEAR_DUPLICATE = "near_duplicate"  # near-equal caption and near-equal picture
    DUPLICATE_CAPTION = (
        "duplicate_caption"  # near-equal caption (dedup.by = "caption"), or the same normal form (dedup.exact)
    )
    DUPLICATE_IMAGE = "duplicate_image"  # near-equal picture (dedup.by = "image")
    # exclude: the list that named the row
    EXCLUDED_UID = "excluded_uid"
    EXCLUDED_URL = "excluded_url"
    EXCLUDED_DOMAIN = "excluded_domain"
    EXCLUDED_SHA256 = "excluded_sha256"


REJECTED_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.binary(16)),
        pa.field("url", pa.string()),
        pa.field("caption_raw", pa.string()),
        pa.field("source", pa.string()),
        pa.field("query_ids", pa.list_(pa.int32())),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)
"""A row that was left out, still readable. `uid` is null where the row had no URL or caption to take it from."""


def length_prefixed(parts: Iterable[bytes]) -> bytes:
    """Join parts so that no two different lists give the same bytes: each is led by its length, 8 bytes little-endian."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def uid(url: str, caption_raw: str) -> bytes:
    """The identity of a pair: BLAKE2b-128 over the length-prefixed UTF-8 of its URL, stripped, and raw caption (16 bytes)."""
    parts = (text.encode("utf-8", "surrogatepass") for text in (url, caption_raw))
    return hashlib.blake2b(length_prefixed(parts), digest_size=16).digest()


def choice_key(row_uid: bytes, seed: int, purpose: str) -> bytes:
    """The number by which a row wins or loses a choice (16 bytes, compare as big-endian): the smallest key is kept.

    BLAKE2b-128 of the uid, keyed by the corpus seed and by what is being chosen, so that a choice never depends on arrival order, worker
    count or time, and so that being kept by one stage says nothing about the next.
    """
    key = seed.to_bytes(8, "little", signed=True)
    person = hashlib.blake2b(purpose.encode(), digest_size=16).digest()
    return hashlib.blake2b(row_uid, digest_size=16, key=key, person=person).digest()


def rejected_rows(table: pa.Table, reason: Reason, detail: pa.Array | str | None = None) -> pa.Table:
    """Rows of any stage's table as REJECTED_SCHEMA; columns that the table lacks become null."""
    rows = table.num_rows
    columns = []
    for field in REJECTED_SCHEMA:
        if field.name == "reason":
            columns.append(pa.array([reason.value] * rows, pa.string()))
        elif field.name == "detail":
            is_column = isinstance(detail, (pa.Array, pa.ChunkedArray))
            columns.append(detail if is_column else pa.array([detail] * rows, pa.string()))
        elif field.name in table.column_names:
            columns.append(table[field.name].cast(field.type))
        else:
            columns.append(pa.nulls(rows, field.type))
    return pa.table(columns, schema=REJECTED_SCHEMA)
