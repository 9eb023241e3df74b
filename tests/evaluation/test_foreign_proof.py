"""Proofs on corpora that others wrote: img2dataset itself as the writer, `kill -9` in both stages, tars in an object store."""

import http.server
import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.report import files, verify
from evaluation.report.files import read_report
from pipeline.contracts import storage
from pipeline.contracts.config import to_toml
from tests.conftest import ROOT
from tests.e2e import pipelines
from tests.evaluation import foreign, planted
from tests.evaluation.test_foreign import config_of, contents

TARS = 12


def command(config: Path, report: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "evaluation", "overlap", "--config", str(config), f"report.dir={report}", *more]


# ---- img2dataset writes

_DOWNLOAD = """
import sys
from img2dataset import download
if __name__ == "__main__":
    urls, folder, form = sys.argv[1:]
    download(
        url_list=urls, input_format="parquet", url_col="url", caption_col="caption", output_folder=folder, output_format=form,
        resize_mode="keep_ratio", image_size=320, resize_only_if_bigger=True, processes_count=1, thread_count=4,
        number_sample_per_shard=20, enable_wandb=False, retries=0,
    )
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[planted.Planted, Path]]:
    """A planted corpus on a web server of this machine, and a table of its URLs, one of which leads nowhere."""
    made = planted.plant(tmp_path, examples=10, leaks=5, others=20)
    pictures = {f"/{number}.jpg": pair for number, pair in enumerate(foreign.pairs_of(made))}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pair = pictures.get(self.path)
            self.send_response(200 if pair else 404)
            self.end_headers()
            self.wfile.write(pair.image if pair else b"nothing here")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    paths = [*pictures, "/gone.jpg"]
    captions = [*(pair.caption for pair in pictures.values()), "gone"]
    pq.write_table(pa.table({"url": [base + path for path in paths], "caption": captions}), tmp_path / "urls.parquet")
    yield made, tmp_path / "urls.parquet"
    server.shutdown()
    server.server_close()


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    sys.version_info >= (3, 13) or importlib.util.find_spec("img2dataset") is None,
    reason="img2dataset does not import on Python 3.13",
)
@pytest.mark.parametrize(
    ("form", "layout"), [("webdataset", "webdataset"), ("parquet", "parquet"), ("files", "folder")]
)
def test_what_img2dataset_wrote(served: tuple[planted.Planted, Path], tmp_path: Path, form: str, layout: str) -> None:
    made, urls = served
    out = tmp_path / "out"
    script = tmp_path / "download.py"
    script.write_text(_DOWNLOAD, "utf-8")
    arguments = [sys.executable, str(script), str(urls), str(out), form]
    written = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert written.returncode == 0, written.stderr
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(config_of(made, {"files": str(out), "layout": layout}, tmp_path / "report")), "utf-8")
    result = subprocess.run(
        command(config, str(tmp_path / "report")), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    told = read_report(str(tmp_path / "report")).corpus
    asked = pq.read_metadata(urls).num_rows
    assert told.rows == asked - 1
    assert told.rejected == ({"no_image": 1} if form == "parquet" else {})
    split = pq.read_table(tmp_path / "report" / "splits" / "scenes.parquet").to_pylist()
    assert {row["eval_id"] for row in split if row["in_overlap"]} == set(made.answers)
    pairs = pq.read_table(tmp_path / "report" / files.PAIRS).to_pylist()
    assert all(row["url"].startswith("http://127.0.0.1:") and row["key"] for row in pairs)
    exact = {row["eval_id"] for row in pairs if row["source_exact"]}
    assert exact == {name for name, manner in made.answers.items() if manner == "stored_exact"}
    assert verify(str(tmp_path / "report")) == []


# ---- killed


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_killed_in_each_stage_and_resumed(tmp_path: Path) -> None:
    """The driver is killed when two units of a stage are committed; the same command then ends with the bytes of an undisturbed run."""
    made = planted.plant(tmp_path, examples=12, leaks=5, others=140)
    pairs = foreign.pairs_of(made)
    corpus = foreign.write_webdataset(tmp_path / "in", pairs, per_file=-(-len(pairs) // TARS))
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(config_of(made, corpus, tmp_path / "unused")), "utf-8")
    with pipelines.ray_folder() as folder:
        environment = pipelines.environment(folder)
        launches = []

        def start(name: str) -> pipelines.Launch:
            arguments = command(config, str(tmp_path / name), "engine.workers=1")
            launches.append(pipelines.start(arguments, tmp_path / f"{name}.log", environment))
            return launches[-1]

        try:
            assert start("whole").wait() == 0, launches[-1].text()
            for stage in ("list", "index"):
                for attempt in range(10):  # a busy machine may look too late
                    name = f"{stage}-{attempt}"
                    launch = start(name)
                    work = tmp_path / f"{name}.work" / stage
                    while len(list(work.glob("*/*.json"))) < 2 and launch.process.poll() is None:
                        time.sleep(0.002)
                    launch.kill(group=False)
                    committed = len(list(work.glob("*/*.json")))
                    print(f"{name}: killed with {committed} of {TARS} units committed")
                    if 2 <= committed < TARS:
                        break
                assert 2 <= committed < TARS, launch.text()
                assert start(name).wait() == 0, launches[-1].text()
                assert contents(tmp_path / name) == contents(tmp_path / "whole")
                assert verify(str(tmp_path / name)) == []
        finally:
            for launch in launches:
                launch.end()


# ---- in a store


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_tars_in_a_store_as_on_the_disk(tmp_path: Path, s3_endpoint: str) -> None:
    made = planted.plant(tmp_path, examples=10, leaks=5, others=20)
    corpus = foreign.write_webdataset(tmp_path / "in", foreign.pairs_of(made), per_file=20)
    boto3.client("s3").create_bucket(Bucket="tars")
    for path in (tmp_path / "in").iterdir():
        storage.write_atomic(f"s3://tars/in/{path.name}", path.read_bytes())
    config = tmp_path / "overlap.toml"
    config.write_text(to_toml(config_of(made, corpus, tmp_path / "unused")), "utf-8")
    for report, more in ((str(tmp_path / "here"), ()), ("s3://tars/report", ("corpus.files=s3://tars/in/*.tar",))):
        result = subprocess.run(command(config, report, *more), cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert verify(report) == []
    here = contents(tmp_path / "here")
    assert {name: storage.read_bytes(f"s3://tars/report/{name}") for name in here} == here
