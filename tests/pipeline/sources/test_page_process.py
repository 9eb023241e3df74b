"""Pages made to cost minutes or gigabytes, among pages that do not: each is told, and its neighbours give what they give without it."""

import contextlib
import gzip
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.config import PipelineConfig
from pipeline.contracts.errors import RunError
from pipeline.engine import EngineConfig, Run
from pipeline.sources import page, page_process, rows
from pipeline.sources.files import SourceFile, SourcesConfig, expand
from pipeline.sources.page import Limits, Page, Reference
from pipeline.sources.page_process import TOO_MUCH, PageProcess
from pipeline.stages.candidates import candidates, look

_LIMITS = Limits(4096, 8192, 1000, ())
_URL = "http://e.org/"
_HONEST = b"<img src=a.jpg alt='a dog'>"
_FOUND = Page([Reference("http://e.org/a.jpg", "a dog", "alt")], 0, None)

_COPIED = "".join(f"<b x={number}><p>" for number in range(6000))
_STRAY = "<span>" * 100_000 + "</x>" * 60_000
_NAMES = "".join(f"<a{number}>" for number in range(500_000))
_ATTRIBUTES = "<p " + " ".join(f"a{number}" for number in range(150_000)) + ">"
_A_SECOND = b"<span>" * 20_000 + b"</x>" * 15_000 + _HONEST


@pytest.fixture
def pages() -> Iterator[PageProcess]:
    with PageProcess(_LIMITS) as found:
        yield found


def _children() -> list[psutil.Process]:
    """The processes of this one that read pages."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if page_process.__name__ in child.cmdline():
                found.append(child)
    return found


def _killed_at_work(times: int) -> Callable[[], int]:
    """Kill each process that reads pages in the midst of a page, which is later than 0.3 processor seconds, up to so many of them.
    What is returned ends this, and says how many were killed."""
    done = threading.Event()
    killed: set[int] = set()

    def kill() -> None:
        while not done.is_set() and len(killed) < times:
            for child in _children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.pid not in killed and child.cpu_times().user > 0.3:
                        child.kill()
                        killed.add(child.pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()

    def end() -> int:
        done.set()
        thread.join()
        return len(killed)

    return end


def test_what_it_reads_is_what_the_function_reads(pages: PageProcess) -> None:
    """Texts that a message must carry: every plane, lone surrogates in the URL, no caption, an opt-out, more images than the limit."""
    for html, url, charset in (
        (_HONEST, _URL, None),
        ("<meta name=robots content=noai><img alt='é日\U0001f600\0' src=a.jpg>".encode(), "http://e.org/\udcff/", "utf-8"),
        ("Двое детей <img alt='Двое детей' src=ж.jpg>".encode("cp1251"), _URL, "windows-1251"),
        (b"<img src=a.jpg>" * 1001, _URL, None),
        (b"", "", ""),
        (b"<p>" * 500_000 + _HONEST, _URL, None),
    ):  # fmt: skip
        assert pages.read(html, url, charset) == page.read(html, url, charset, _LIMITS)
    assert len(_children()) == 1


_TIMED = {"stray": _STRAY, "names": _NAMES, "attributes": _ATTRIBUTES}
"""Pages that end on the limit of time; a copied one ends on that of memory first."""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param(_COPIED, page_process.MAX_SECONDS, id="copied"),
        *(pytest.param(text, 1, id=name) for name, text in _TIMED.items()),
        *(
            pytest.param(text, page_process.MAX_SECONDS, marks=pytest.mark.prove, id=f"{name}, all of its time")
            for name, text in _TIMED.items()
        ),
    ],
)
def test_a_page_beyond_the_limits_is_told_and_the_next_is_read(
    pages: PageProcess, monkeypatch: pytest.MonkeyPatch, text: str, seconds: int
) -> None:
    monkeypatch.setattr(page_process, "MAX_SECONDS", seconds)
    before = psutil.Process().memory_info().rss
    spent = os.times()
    assert pages.read(_HONEST, _URL, None) == _FOUND
    assert pages.read(text.encode(), _URL, None) is None
    assert pages.read(_HONEST, _URL, None) == _FOUND
    children = os.times()
    cost = sum(children[2:4]) - sum(spent[2:4])  # of the processes that ended
    assert cost < seconds + 2
    assert psutil.Process().memory_info().rss - before < 50 << 20
    assert len(_children()) == 1


def test_megabytes_of_tags_that_are_not_copied_are_within_the_limits(pages: PageProcess) -> None:
    for tag, count in (
        ("<p>", 1_390_000),
        ("<a b>", 830_000),
        ("<br>", 1_040_000),
        ("<b>", 1_390_000),
        ("<img>", 200_000),
    ):
        found = pages.read((tag * count).encode(), _URL, None)
        assert found is not None
        assert len(found.references) + found.left == (count if tag == "<img>" else 0)


def test_a_page_whose_process_is_killed_from_outside_is_tried_once_more(pages: PageProcess) -> None:
    end = _killed_at_work(times=1)
    found = pages.read(_A_SECOND, _URL, None)
    assert end() == 1
    assert found == _FOUND
    end = _killed_at_work(times=9)
    found = pages.read(_A_SECOND, _URL, None)
    assert end() == 2
    assert found is None
    assert pages.read(_HONEST, _URL, None) == _FOUND
    child = _children()[0]
    child.kill()  # while it waits
    assert pages.read(_HONEST, _URL, None) == _FOUND


def test_no_process_is_left_behind(pages: PageProcess) -> None:
    assert not _children()  # none is started for archives without pages
    with PageProcess(_LIMITS) as other:
        other.read(_HONEST, _URL, None)
        (child,) = _children()
    assert not child.is_running()
    with pytest.raises(psutil.NoSuchProcess):
        child.status()  # nor a zombie


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_with_a_worker_that_is_killed(busy: bool) -> None:
    code = (
        "from pipeline.sources import page_process\nfrom pipeline.sources.page import Limits\n"
        "page_process.MAX_SECONDS = 1  # after which a busy one ends by itself\n"
        "pages = page_process.PageProcess(Limits(4096, 8192, 1000, ()))\npages.read(b'', 'http://e.org/', None)\nprint(flush=True)\n"
        + ("pages.read(b'<span>' * 100_000 + b'</x>' * 60_000, '', None)" if busy else "input()")
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        (child,) = psutil.Process(worker.pid).children()
        worker.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([child], timeout=60)
    assert not alive


def test_it_imports_little() -> None:
    code = f"import sys, {page_process.__name__}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "pyarrow", "pydantic", "ray", "numba"} & set(done.stdout.split())


def test_a_process_that_cannot_start_is_no_pages_fault(pages: PageProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with pytest.raises(RunError, match="ended as it started"):
        pages.read(_HONEST, _URL, None)
    monkeypatch.setattr("sys.executable", "/dev/null/python")
    with pytest.raises(RunError, match="cannot start"):
        pages.read(_HONEST, _URL, None)


def test_an_exception_is_no_pages_fault() -> None:
    with PageProcess(_LIMITS._replace(max_caption_bytes=None)) as pages, pytest.raises(RuntimeError, match="TypeError"):  # type: ignore[arg-type]
        pages.read(_HONEST, _URL, None)


# ---- archives


def _record(url: str, body: bytes) -> bytes:
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:668d88fc-4208-41fc-b327-1aa6cb783331>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + block + b"\r\n\r\n", mtime=0)


def _archive(place: Path, pages: list[str]) -> list[int]:
    """Write an archive of pages; returns the offsets of their records."""
    records = [_record(f"http://e.org/{number}", text.encode()) for number, text in enumerate(pages)]
    place.write_bytes(b"".join(records))
    return [len(b"".join(records[:number])) for number in range(len(records))]


def _honest(number: int) -> str:
    return f"<p>text<img src={number}.jpg alt='picture {number}'>"


def test_pages_around_a_hostile_one_give_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One ends on the limit of memory, the other on that of time, which is two seconds here: the first takes less than one."""
    monkeypatch.setattr(page_process, "MAX_SECONDS", 2)
    pages = [_honest(number) for number in range(6)]
    hostile = {1: _COPIED + pages[1], 4: _STRAY}
    offsets = _archive(tmp_path / "t.warc.gz", [hostile.get(number, text) for number, text in enumerate(pages)])
    config = SourcesConfig(paths=[str(tmp_path / "t.warc.gz")])
    (file,) = expand(config)
    kept, rejected = rows.candidates(rows.read(file, config), config)
    assert kept["caption_raw"].to_pylist() == [f"picture {number}" for number in (0, 2, 3, 5)]
    told = [(row["source"], row["reason"], row["detail"]) for row in rejected.to_pylist()]
    assert told == [(f"t.warc.gz#{offsets[number]}", "bad_row", TOO_MUCH) for number in hostile]


@pytest.mark.prove
def test_one_worker_and_two_commit_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for number in range(4):
        pages = [_honest(number * 10 + place) for place in range(5)]
        pages[number] = _COPIED
        _archive(tmp_path / f"{number}.warc.gz", pages)
        files.append(SourceFile(str(tmp_path / f"{number}.warc.gz"), f"{number}.warc.gz", "warc"))
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        found = {}
        for workers in (1, 2):
            out = tmp_path / str(workers)
            config = PipelineConfig.model_validate(
                {"run": {"out": str(out)}, "sources": {"paths": ["-"]}, "filter": {"queries": "q.txt"}}
            )
            with Run(str(out), EngineConfig(workers=workers), {}, "d") as driver:
                candidates(driver, config, look(driver, config, files))
            found[workers] = {
                str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("candidates/*/*.parquet"))
            }
    finally:
        ray.shutdown()
    assert found[1] == found[2]
    rejected = [path for path in (tmp_path / "1").rglob("*.rejected.parquet") if pq.read_metadata(path).num_rows]
    assert [pq.read_table(path)["detail"].to_pylist() for path in rejected] == [[TOO_MUCH]] * 4
