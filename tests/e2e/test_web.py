"""The procedural web holds what it promises, judged by the product's own parts: each trouble is what it is called."""

import concurrent.futures
import hashlib
import http.client
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline import dedup
from pipeline.content import hashes, image
from pipeline.contracts.schema import Reason, uid
from pipeline.crawl.guard import Guard
from pipeline.dedup.signatures import shingles
from pipeline.match import Matcher, load_queries
from pipeline.quality import filter_rows
from pipeline.sources import rows as source_rows
from pipeline.sources.files import SourcesConfig, expand
from tests.web import answers, scenes, server, tables
from tests.web.site import REASONS, STAGES, Kind, Row, Web, total_rejected

WEB = Web(seed=11, pairs=3000, port=8080)


def _bits(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a) ^ int.from_bytes(b)).bit_count()


def test_every_planted_reason_is_one_of_the_closed_list() -> None:
    assert {reason for _, reason in REASONS.values()} | {"over_cap", "bad_row"} <= {reason.value for reason in Reason}
    assert {stage for stage, _ in REASONS.values()} <= set(STAGES)


def test_a_row_does_not_depend_on_the_size_of_the_web_or_on_the_rows_asked_for_before() -> None:
    small, large = Web(5, 200, 80), Web(5, 100_000, 80)
    assert [large.row(k) for k in reversed(range(200))][::-1] == list(small.rows())
    assert list(small.rows()) != list(Web(6, 200, 80).rows())
    assert answers.picture(small, 7) == answers.picture(large, 7)


def test_expected_counts_add_up_and_say_what_the_rows_are() -> None:
    counts = WEB.expected(broken_lines=4)
    left = WEB.pairs + 4
    for stage in STAGES:
        assert counts[stage].rows_in == left
        left = counts[stage].rows_out
        assert left == counts[stage].rows_in - sum(counts[stage].rejected.values())
    kinds = WEB.kinds()
    assert set(kinds) == set(Kind), "a web of 3,000 pairs has every kind"
    assert total_rejected(counts)["near_duplicate"] == kinds[Kind.COPY] + kinds[Kind.NEAR]
    assert total_rejected(counts)["over_cap"] == kinds[Kind.POPULAR] - WEB.cap
    assert WEB.expected(cap=10**6)["balance"].rejected == {}


def test_a_rate_of_zero_switches_a_trouble_off() -> None:
    calm = Web(11, 500, 80, rates=dict.fromkeys(REASONS, 0.0))
    assert set(total_rejected(calm.expected(cap=500))) == set()
    with pytest.raises(ValueError, match="rates"):
        Web(11, 500, 80, rates={Kind.NEAR: 0.9}).kinds()


def test_a_caption_matches_the_query_of_its_class_and_no_other() -> None:
    queries = scenes.queries()
    matcher = Matcher(queries)
    for row in WEB.rows():
        if row.kind is Kind.UNRELATED:
            assert matcher.match_one(row.caption or "") == [], row.caption
        elif row.kind not in (Kind.NO_CAPTION, Kind.BLANK_CAPTION):
            assert [queries[i] for i in matcher.match_one(row.caption or "")] == [WEB.scene(row.k).query], row.caption


def _jaccard(a: str, b: str) -> float:
    left, right = set(shingles(a)), set(shingles(b))
    return len(left & right) / len(left | right)


def test_near_captions_are_near_and_second_captions_are_far() -> None:
    for row in WEB.rows():
        original = WEB.scene(row.k).caption
        if row.kind in (Kind.NEAR, Kind.COPY):
            assert _jaccard(original, row.caption or "") > 0.9, row
        elif row.kind is Kind.SECOND_CAPTION:
            assert _jaccard(original, row.caption or "") < 0.6, row


def test_tables_hold_every_row_and_the_first_stages_count_as_planted(tmp_path: Path) -> None:
    tables.write_tables(WEB, tmp_path / "tables", broken_lines=3)
    tables.write_queries(tmp_path / "queries.txt")
    config = SourcesConfig(paths=[str(tmp_path / "tables")])
    read = pa.concat_tables([source_rows.read(file, config) for file in expand(config)])
    expected = WEB.expected(broken_lines=3)
    assert read.num_rows == WEB.pairs + 3

    found, bad = source_rows.candidates(read, config)
    assert _counts(bad) == expected["candidates"].rejected
    unique, repeated = dedup.exact(found)
    assert _counts(repeated) == expected["exact"].rejected
    matched, unmatched = filter_rows(unique, Matcher(load_queries(str(tmp_path / "queries.txt")).queries))
    assert _counts(unmatched) == expected["filter"].rejected
    assert matched.num_rows == expected["filter"].rows_out


def _counts(rejected: pa.Table) -> dict[str, int]:
    counted = pc.value_counts(rejected["reason"]).to_pylist()
    return {str(entry["values"]): int(entry["counts"]) for entry in counted}


def _verdict(row: Row, guard: Guard) -> str | None:
    """What a perfect crawler would call this row without a network: the guard, then the answer's status, then the decoder."""
    refused = guard.refuse(row.url or "")
    if refused:
        return refused[0].value
    if row.url is None or f":{WEB.port}/" not in row.url:
        return "connection"
    answer = answers.answer(WEB, row.url.split(f":{WEB.port}")[1])
    if answer.headers.get("X-Robots-Tag", "").startswith("noa") or "noimageai" in answer.headers.get(
        "X-Robots-Tag", ""
    ):
        return "opt_out"
    if answer.late:
        return "timeout"
    if answer.promised is not None:
        return "connection"
    if answer.status >= 400:
        return "http_status"
    for _ in range(10):
        if answer.status == 200:
            break
        answer = answers.answer(WEB, answer.headers["Location"].split(f":{WEB.port}")[-1])
    else:
        return "redirect"
    if len(answer.body) > 2_000_000:
        return "too_many_bytes"
    try:
        picture = image.decode(answer.body)
    except image.ImageRejected as error:
        return error.reason.value
    if min(picture.original_width, picture.original_height) < 16:
        return "image_too_small"
    return "aspect_ratio" if picture.original_width > 8 * picture.original_height else None


def test_every_answer_is_the_trouble_it_is_planted_as() -> None:
    guard = Guard(("127.0.0.0/8",))
    for row in WEB.rows():
        planted = REASONS.get(row.kind, ("", None))[1]
        if row.kind in (Kind.PLAIN, Kind.POPULAR) and row.k % 20:
            continue
        if row.kind in (Kind.NO_CAPTION, Kind.BLANK_CAPTION, Kind.REPEATED, Kind.UNRELATED, Kind.COPY, Kind.NEAR):
            planted = None  # nothing is wrong with their pictures
        assert _verdict(row, guard) == planted, row


def test_different_scenes_are_far_apart_and_copies_near_for_a_perceptual_hash() -> None:
    originals, copies = [], []
    for k in range(400):
        scene = scenes.scene(3, k)
        found, quality = hashes.pdq(image.decode(scenes.picture_bytes(scene)).rgb)
        assert quality == 100
        originals.append(found)
        if k < 60:
            copies.append(_bits(found, hashes.pdq(image.decode(scenes.smaller_copy(scene, 0.9, 60)).rgb)[0]))
    assert max(copies) <= 31
    assert min(_bits(a, b) for i, a in enumerate(originals) for b in originals[:i]) > 62


@pytest.mark.prove
def test_no_two_of_twenty_thousand_scenes_look_alike() -> None:
    count = 20_000
    found = [hashes.pdq(image.decode(scenes.picture_bytes(scenes.scene(3, k))).rgb)[0] for k in range(count)]
    words = np.frombuffer(b"".join(found), np.uint64).reshape(count, 4)
    closest = min(int(np.bitwise_count(words[i + 1 :] ^ words[i]).sum(axis=1).min()) for i in range(count - 1))
    print(f"closest pair of {count:,} scenes: {closest} bits of 256")
    assert closest > 62


def test_the_evaluation_set_has_the_stated_leaks_and_no_other(tmp_path: Path) -> None:
    planted = tables.write_evaluation(WEB, tmp_path / "set.parquet", rows=90, leaks=12)
    written = pq.read_table(tmp_path / "set.parquet")
    assert written.num_rows == 90
    assert [leak.manner for leak in planted] == ["exact", "recompressed", "smaller"] * 4
    web = {k: answers.picture(WEB, k) for k in (leak.k for leak in planted)}
    for leak in planted:
        row = written.slice(leak.row, 1).to_pylist()[0]
        assert scenes.CLASSES[row["label"]] == row["name"] == WEB.scene(leak.k).name
        same = hashlib.sha256(row["image"]).digest() == hashlib.sha256(web[leak.k]).digest()
        assert same == (leak.manner == "exact")
        a, b = (hashes.pdq(image.decode(data).rgb)[0] for data in (row["image"], web[leak.k]))
        assert _bits(a, b) <= 31
    clean = set(range(90)) - {leak.row for leak in planted}
    on_the_web = {hashlib.sha256(answers.picture(WEB, k)).digest() for k in range(300)}
    images = written["image"].to_pylist()
    assert not on_the_web & {hashlib.sha256(images[row]).digest() for row in clean}


def test_pages_show_every_row_with_its_caption() -> None:
    assert answers.page_count(WEB) * answers.PAGE_ROWS == WEB.pairs
    text = answers.page(WEB, 3).decode()
    assert text.count("<img") == answers.PAGE_ROWS
    assert uid("http://a/", "b") != uid("http://a/b", "")


# ---- over the network


def test_the_server_answers_as_planned_while_slow_answers_wait() -> None:
    quick = dict.fromkeys((Kind.HANGS, Kind.BOMB, Kind.OVERSIZED), 0.02)
    with server.running(seed=4, pairs=400, rates=quick) as web:
        hangs = [row.url or "" for row in web.rows() if row.kind is Kind.HANGS]
        assert hangs
        waiting = [_send(url) for url in hangs]
        started = time.monotonic()
        rows = [
            row
            for row in web.rows()
            if row.kind not in (Kind.BAD_URL, Kind.BAD_SCHEME, Kind.PRIVATE_ADDRESS, Kind.HANGS)
        ]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(_get, [row.url or "" for row in rows]))
        assert time.monotonic() - started < web.hang_s, "the late answers held up the others"
        for row, outcome in zip(rows, outcomes, strict=True):
            _check_outcome(web, row, outcome)
        counted = server.hits(web)
        assert all(counted[row.k] >= 1 for row in rows if row.kind in (Kind.PLAIN, Kind.NOT_FOUND, Kind.LOOP))
        assert all(k not in counted for k in (row.k for row in web.rows() if row.kind is Kind.PRIVATE_ADDRESS))
        for connection in waiting:
            connection.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.2:{web.port}/robots.txt", timeout=5)


def test_the_server_ends_with_its_parent() -> None:
    code = (
        "import time\nfrom tests.web.server import running\n"
        "with running(seed=4, pairs=20) as web:\n    print(web.port, flush=True)\n    time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        port = int(parent.stdout.readline())
        parent.kill()
        parent.wait(timeout=10)
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.2", port), timeout=5).close()
        except ConnectionRefusedError:
            break
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.1)


def _send(url: str) -> socket.socket:
    host, rest = url.removeprefix("http://").split(":", 1)
    port, path = rest.split("/", 1)
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return connection


def _get(url: str) -> int | bytes | str:
    """The body, the status, or the name of the error."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answered:
            body: bytes = answered.read()
            return body
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def _check_outcome(web: Web, row: Row, outcome: int | bytes | str) -> None:
    if row.kind in (Kind.NOT_FOUND, Kind.SERVER_ERROR):
        assert outcome in (403, 404, 410, 500, 503)
    elif row.kind is Kind.LOOP:
        assert outcome in (301, 302)
    elif row.kind is Kind.REFUSED:
        assert outcome == "URLError"
    elif row.kind is Kind.CUT_OFF:
        assert outcome == "IncompleteRead"
    elif row.kind in (Kind.REPEATED, Kind.SECOND_CAPTION):
        assert outcome == answers.picture(web, row.origin)
    elif row.kind is not Kind.HTML:
        assert outcome == answers.picture(web, row.k)
