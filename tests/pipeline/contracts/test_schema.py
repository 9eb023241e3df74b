"""Identity and choice: the formats of contracts/README.md, computed a second time by hand."""

import hashlib

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contracts import schema


@given(st.text(), st.text())
@settings(deadline=None)
def test_uid_is_what_the_specification_says(url: str, caption: str) -> None:
    first, second = url.encode(), caption.encode()
    data = len(first).to_bytes(8, "little") + first + len(second).to_bytes(8, "little") + second
    assert schema.uid(url, caption) == hashlib.blake2b(data, digest_size=16).digest()


def test_the_border_between_url_and_caption_counts() -> None:
    assert schema.uid("ab", "c") != schema.uid("a", "bc")
    assert schema.uid("\ud800", "lone surrogates have a uid too")


def test_a_choice_is_keyed_by_seed_and_purpose() -> None:
    row = bytes(range(16))
    person = hashlib.blake2b(b"dedup", digest_size=16).digest()
    key = (17).to_bytes(8, "little", signed=True)
    assert schema.choice_key(row, 17, "dedup") == hashlib.blake2b(row, digest_size=16, key=key, person=person).digest()
    assert len({schema.choice_key(row, seed, purpose) for seed in (1, 2) for purpose in ("dedup", "balance")}) == 4


def test_the_index_is_the_shard_without_its_pictures() -> None:
    assert [name for name in schema.SHARD_SCHEMA.names if name != "image"] == schema.INDEX_SCHEMA.names


def test_rejected_rows_keep_what_is_known() -> None:
    table = pa.table({"url": ["http://a/1"], "source": ["x#1"], "uid": pa.array([bytes(16)], pa.binary(16))})
    row = schema.rejected_rows(table, schema.Reason.DNS, "no such host")
    assert row.schema == schema.REJECTED_SCHEMA
    assert row.to_pylist() == [
        {
            "uid": bytes(16),
            "url": "http://a/1",
            "caption_raw": None,
            "source": "x#1",
            "query_ids": None,
            "reason": "dns",
            "detail": "no such host",
        }
    ]
