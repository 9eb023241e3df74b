"""retry over real HTTP: a server whose pictures come back to life, and the truth counted from what it was asked."""

import collections
import hashlib
import io
import itertools
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from pipeline import __main__ as cli
from pipeline.contracts import manifest
from pipeline.contracts.errors import InputError

ROWS = 48


class Site(ThreadingHTTPServer):
    """/good/N has a picture; /later/N has one from the moment that `awake` is set, /never/N has none, /html/N is a page."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.awake = False
        self.hits: collections.Counter[str] = collections.Counter()
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.hits[self.path] += 1
        kind = self.path.split("/")[1]
        if kind == "robots.txt" or kind == "never" or (kind == "later" and not self.server.awake):
            self.send_error(404)
            return
        body = b"<html>no picture</html>" if kind == "html" else picture(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def picture(path: str) -> bytes:
    seed = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big")
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)).save(sink, "PNG")
    return sink.getvalue()


def kind(number: int) -> str:
    return ("good", "later", "later", "never", "html", "good")[number % 6]


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def site(one_ray: None) -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def write_config(site: Site, folder: Path) -> Path:
    base = f"http://127.0.0.1:{site.server_port}"
    lines = [f"{base}/{kind(number)}/{number}.png\ta dog number {number}" for number in range(ROWS)]
    (folder / "list.tsv").write_text("url\tcaption\n" + "\n".join(lines) + "\n")
    (folder / "queries.txt").write_text("dog\n")
    config = folder / "config.toml"
    config.write_text(
        f"""
[run]
out = "given"
[sources]
paths = ["{folder}/list.tsv"]
[filter]
queries = "{folder}/queries.txt"
[crawl]
units = 3
retries = 0
allow_addresses = ["127.0.0.0/8"]
[shard]
rows = 10
"""
    )
    return config


def asked(site: Site, name: str) -> dict[int, int]:
    return {
        int(path.split("/")[2].removesuffix(".png")): hits
        for path, hits in site.hits.items()
        if path.startswith(f"/{name}/")
    }


def first_rows(out: Path, stage: str) -> list[bytes]:
    """The uids that the first unit of a stage that kept any has kept."""
    paths = [path for path in sorted(out.glob(f"{stage}/*/*.parquet")) if ".rejected" not in path.name]
    found: list[list[bytes]] = [pq.read_table(path, columns=["uid"])["uid"].to_pylist() for path in paths]
    return next(uids for uids in found if uids)


def test_rows_that_failed_are_fetched_again_and_counted_once(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = write_config(site, tmp_path), tmp_path / "out"
    run = ["run", "--config", str(config), f"run.out={out}"]
    with pytest.raises(InputError, match="no run\\.json here"):
        cli.main(["retry", str(out), "--reason", "http_status"])
    cli.main(run)
    numbers = collections.Counter(kind(number) for number in range(ROWS))
    first = manifest.load(str(out / "shards"))
    assert first.counts["crawl"].rejected == {
        "http_status": numbers["later"] + numbers["never"],
        "not_an_image": numbers["html"],
    }
    committed = {
        path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.parent.parent.name == "crawl"
    }
    site.awake = True
    site.hits.clear()
    cli.main(["retry", str(out), "reason=http_status", "--check"])
    assert (
        f"{numbers['later'] + numbers['never']} rows ({numbers['later'] + numbers['never']} http_status)"
        in capsys.readouterr().out
    )
    assert not site.hits
    assert not (out / "retries").exists()

    # The new generation asks for these rows alone, once; the recording stays.
    cli.main(["retry", str(out), "--reason", "http_status"])
    for name, hits in (("later", 1), ("never", 1), ("good", 0), ("html", 0)):
        assert asked(site, name) == ({n: hits for n in range(ROWS) if kind(n) == name} if hits else {})
    assert {path: path.read_bytes() for path in committed} == committed
    # The stages after the crawl have not taken them in yet; their records are still told of, and still verified.
    come_back = first_rows(out, "retry-1")[0]
    capsys.readouterr()
    cli.main(["show", str(out), come_back.hex()])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith(("crawl ", "retry-1 "))] == ["rejected", "kept"]
    assert f"{'dedup':<14}not seen  (in an earlier run)" in lines
    assert [line for line in lines if line.startswith("corpus ")] == ["corpus        the row is not in it"]
    cli.main(["verify", str(out)])
    site.hits.clear()
    cli.main(run)
    assert not site.hits
    second = manifest.load(str(out / "shards"))
    count = second.counts["crawl"]
    assert count.rejected == {"http_status": numbers["never"], "not_an_image": numbers["html"]}
    assert (count.rows_in, count.rows_out) == (ROWS, ROWS - numbers["never"] - numbers["html"])
    for one, two in itertools.pairwise(second.counts.values()):
        assert one.rows_out == two.rows_in
    uids = {
        uid
        for shard in second.shards
        for uid in pq.read_table(manifest.shard_uri(str(out / "shards"), shard))["caption"].to_pylist()
    }
    assert uids == {f"a dog number {n}" for n in range(ROWS) if kind(n) in ("good", "later")}
    cli.main(["verify", str(out)])

    # Another generation takes up what still stands rejected, and nothing that a generation before has brought home.
    cli.main(["retry", str(out), "--reason", "not_an_image,http_status"])
    assert {name: len(asked(site, name)) for name in ("good", "later", "never", "html")} == {
        "good": 0, "later": 0, "never": numbers["never"], "html": numbers["html"],
    }  # fmt: skip
    cli.main(run)
    third = manifest.load(str(out / "shards"))
    assert third.counts == second.counts
    assert [shard.sha256 for shard in third.shards] == [shard.sha256 for shard in second.shards], (
        "the same rows, the same bytes"
    )
    with pytest.raises(InputError, match=r"no row stands rejected as timeout; those that do: 8 \w+, 8 \w+"):
        cli.main(["retry", str(out), "--reason", "timeout"])
    with pytest.raises(InputError, match=r"^reason 'weather': 'weather' is no reason"):
        cli.main(["retry", str(out), "--reason", "weather"])
    with pytest.raises(InputError, match=r"^command line: reason: missing; give reason=VALUE"):
        cli.main(["retry", str(out)])
    shown = pq.read_table(manifest.shard_uri(str(out / "shards"), third.shards[0]))
    row = next(row for row in shown.to_pylist() if "/later/" in row["url"])
    capsys.readouterr()
    cli.main(["show", str(out), row["uid"].hex()])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith(("crawl ", "retry-1 ", "retry-2 "))] == [
        ["crawl", "rejected", "http_status:"],
        ["retry-1", "kept", "80x80"],
        ["retry-2", "not", "seen"],
    ]


def test_a_generation_that_was_interrupted_is_finished_first(site: Site, tmp_path: Path) -> None:
    config, out = write_config(site, tmp_path), tmp_path / "out"
    cli.main(["run", "--config", str(config), f"run.out={out}"])
    site.awake = True
    cli.main(["retry", str(out), "--reason", "http_status"])
    records = sorted(out.glob("retry-1/*/*.json"))
    lost = next(path for path in records if '"rows_in": 0' not in path.read_text())
    lost.unlink()
    with pytest.raises(InputError, match=r"generation 1 \(http_status\) is not complete; finish it first"):
        cli.main(["retry", str(out), "--reason", "not_an_image"])
    site.hits.clear()
    cli.main(["retry", str(out), "--reason", "http_status"])
    assert sum(site.hits.values()) > 0
    assert len(list(out.glob("retries/*/*.json"))) == 1
    assert sorted(out.glob("retry-1/*/*.json")) == records
