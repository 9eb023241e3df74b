"""From a web archive to shards: pages and pictures in a WARC give the corpus that the URL tables of the same web give."""

import gzip
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline import __main__ as cli
from pipeline.contracts import manifest
from tests.e2e.pipelines import NO_WAITING, write_config, write_inputs
from tests.web import answers, server
from tests.web.site import Kind, Web

PAIRS = 120


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


def record(url: str, body: bytes, content_type: str) -> bytes:
    """A gzipped WARC record of an answer of 200."""
    block = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:668d88fc-4208-41fc-b327-1aa6cb783331>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + block + b"\r\n\r\n", mtime=0)


def write_archive(web: Web, place: Path) -> set[int]:
    """All pages, and beside each the pictures of every second plain row; returns the numbers of those rows."""
    inside = set()
    with place.open("wb") as archive:
        for number in range(answers.page_count(web)):
            archive.write(
                record(f"http://{web.host(0)}:{web.port}/page/{number}.html", answers.page(web, number), "text/html")
            )
            for row in web.rows(number * answers.PAGE_ROWS, (number + 1) * answers.PAGE_ROWS):
                if row.kind is Kind.PLAIN and row.k % 2:
                    assert row.url is not None
                    archive.write(record(row.url, answers.picture(web, row.k), "image/jpeg"))
                    inside.add(row.k)
    return inside


def rows_of(out: Path) -> pa.Table:
    folder = str(out / "shards")
    return pa.concat_tables(
        [pq.read_table(manifest.shard_uri(folder, shard)) for shard in manifest.load(folder).shards]
    )


def test_a_web_archive_gives_the_corpus_of_the_url_tables(tmp_path: Path, cluster: None) -> None:
    with server.running(9, PAIRS, NO_WAITING) as web:
        write_inputs(web, tmp_path)
        config = write_config(web, str(tmp_path), tmp_path / "config.toml", shard_rows=40)
        command = ["run", "--config", str(config)]
        cli.main([*command, f"run.out={tmp_path / 'tables'}"])
        archive = tmp_path / "crawl.warc.gz"
        inside = write_archive(web, archive)
        before = server.hits(web)
        cli.main([*command, f"run.out={tmp_path / 'archive'}", f"sources.paths=['{archive}']"])
        asked = {k for k, count in server.hits(web).items() if count > before.get(k, 0)}

    expected, found = rows_of(tmp_path / "tables"), rows_of(tmp_path / "archive")
    lineage = ["source", "page_url", "crawled_at"]
    other = [name for name in expected.column_names if name not in lineage]
    assert found.select(other).equals(expected.select(other))
    assert expected.num_rows > PAIRS // 3

    # Lineage: the record at the offset is the page that shows the picture.
    data = archive.read_bytes()
    for row in found.select(["url", "page_url", "source"]).to_pylist():
        name, _, place = row["source"].partition("#")
        offset, _, part = place.partition(":")
        assert (name, part) == ("crawl.warc.gz", "alt")
        page = zlib.decompressobj(31).decompress(data[int(offset) :])
        assert f"WARC-Target-URI: {row['page_url']}\r\n".encode() in page
        assert f'src="{row["url"]}"'.encode() in page

    # What lies in the archive was not asked for.
    assert len(inside) > 20
    assert len(asked) > 20
    assert not inside & asked
    for stage, counts in manifest.load(str(tmp_path / "archive/shards")).counts.items():
        assert counts.rows_in == counts.rows_out + sum(counts.rejected.values()), stage
