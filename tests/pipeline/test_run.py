"""The whole pipeline on a small web over real HTTP: every planted trouble in its place, and what may not change the result does not.

Truth is the plan of the web (tests/web/site.py), which knows for every row the stage and the reason that must reject it, and the
server's count of requests for each row. All runs of this file share one embedded Ray and one server.
"""

import hashlib
import io
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline import __main__ as cli
from pipeline import run as pipeline_run
from pipeline.config import PipelineConfig
from pipeline.contracts import manifest
from pipeline.contracts.config import load_config
from pipeline.contracts.errors import InputError, RunError
from pipeline.contracts.merkle import merkle_root, row_digest
from pipeline.contracts.schema import INDEX_SCHEMA, SHARD_SCHEMA, uid
from pipeline.records import Record
from pipeline.stages.common import Output
from tests.conftest import ROOT
from tests.e2e.pipelines import corpus, write_config, write_inputs
from tests.web import scenes, server, site
from tests.web.site import REASONS, Kind, Web

PAIRS = 500
BROKEN_LINES = 3


@dataclass(frozen=True)
class Site:
    """A served web, a configuration for it, and the output of a first run with two workers."""

    web: Web
    config: Path
    out: Path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("web")
    # Of this seed every kind of trouble is there, and one answer alone is late: each run of the crawl waits for it.
    with server.running(1, PAIRS) as web:
        assert len(web.kinds()) == len(Kind)
        write_inputs(web, folder, BROKEN_LINES)
        # It takes a minute, so that five seconds tell it apart on a busy machine too.
        config = write_config(web, str(folder), folder / "config.toml", shard_rows=150, timeout_s=5.0)
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        pipeline("run", config, folder / "out", "engine.workers=2")
        yield Site(web, config, folder / "out")
        ray.shutdown()


def pipeline(command: str, config: Path, out: Path, *overrides: str, check: bool = False) -> None:
    """The command line, in this process because Ray is up here."""
    cli.main([command, "--config", str(config), *(["--check"] if check else []), f"run.out={out}", *overrides])


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and time of change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def committed(folder: Path) -> dict[str, tuple[int, int]]:
    """The listing without what every run writes anew: run.json and the manifest with its copy."""
    left_out = ("run.json", "shards/manifest")
    return {name: facts for name, facts in listing(folder).items() if not name.startswith(left_out)}


# ---- the result


def test_every_trouble_is_rejected_by_the_stage_and_reason_that_the_plan_names(first: Site) -> None:
    counts = manifest.load(str(first.out / "shards")).counts
    found = {stage: (count.rows_in, count.rows_out, count.rejected) for stage, count in counts.items()}
    expected = first.web.expected(broken_lines=BROKEN_LINES)
    assert found == {stage: (count.rows_in, count.rows_out, count.rejected) for stage, count in expected.items()}


def test_rejected_rows_stay_readable_with_their_reason_row_by_row(first: Site) -> None:
    """`source` leads back to the row of the plan. (Of duplicates either row may be the one that stays.)"""
    starts = {"part-0.parquet": 0, "part-1.parquet": 40, "part-2.csv": 80, "part-3.jsonl": 90}
    reasons: Counter[str] = Counter()
    for stage in ("candidates", "filter", "crawl", "balance"):
        for path in sorted(first.out.glob(f"{stage}/*/*.rejected.parquet")):
            for row in pq.read_table(path).to_pylist():
                name, number = row["source"].split("#")
                k = PAIRS * starts[name] // 100 + int(number)
                reasons[row["reason"]] += 1
                if k >= PAIRS:
                    assert row["reason"] == "bad_row"
                elif stage == "balance":
                    assert (row["reason"], first.web.kind(k)) == ("over_cap", Kind.POPULAR)
                else:
                    assert REASONS[first.web.kind(k)] == (stage, row["reason"]), first.web.row(k)
                    assert (row["url"], row["caption_raw"]) == (first.web.row(k).url, first.web.row(k).caption)
    assert len(reasons) >= 14, f"this web should show most troubles, but only has {reasons}"


def test_the_shards_hold_the_surviving_pairs_in_order(first: Site) -> None:
    found = manifest.load(str(first.out / "shards"))
    web, seen, leaves = first.web, [], []
    for shard in found.shards:
        rows = pq.read_table(manifest.shard_uri(str(first.out / "shards"), shard))
        assert rows.schema.equals(SHARD_SCHEMA)
        index = pq.read_table(manifest.index_uri(str(first.out / "shards"), shard))
        assert index.schema.equals(INDEX_SCHEMA)
        assert index.equals(rows.drop_columns(["image"]))
        for row in rows.to_pylist():
            assert row["uid"] == uid(row["url"], row["caption_raw"])
            assert row["image_sha256"] == hashlib.sha256(row["image"]).digest()
            assert row["query_id"] in row["query_ids"]
            seen.append(row["uid"])
            leaves.append(row_digest(row["uid"], row["caption"], row["image_sha256"]))
    assert seen == sorted(set(seen))
    assert len(seen) == found.rows
    assert found.content_root == merkle_root(leaves)
    sure = {Kind.SECOND_CAPTION, Kind.MISLABELLED, Kind.REDIRECTED, Kind.HARMLESS_HEADER}
    survivors = [row for row in web.rows() if row.kind in sure]
    assert {uid(row.url or "", row.caption or "") for row in survivors} <= set(seen)


def test_every_url_was_fetched_once(first: Site) -> None:
    """Also one with two captions; a redirect asks again at another address, and a loop until the crawler tires."""
    hits = server.hits(first.web)
    for k, count in hits.items():
        if first.web.kind(k) not in (Kind.REDIRECTED, Kind.LOOP):
            assert count == 1, first.web.row(k)
    before_crawl = {kind for kind, (stage, _) in REASONS.items() if site.STAGES.index(stage) < 4}
    unasked = before_crawl - {Kind.REPEATED} | {Kind.PRIVATE_ADDRESS, Kind.REFUSED}
    assert not [k for k in hits if first.web.kind(k) in unasked]


def test_units_of_a_few_rows_make_no_partitions_of_a_few_rows(first: Site, tmp_path: Path) -> None:
    """Each file of `candidates` has one row group, which `exact` reads once, however small the files are."""
    rows = 12
    table = {"url": [f"http://e.org/{n}" for n in range(rows)], "caption": ["a dog"] * rows}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    settings = (f"sources.paths=['{tmp_path}/t.parquet']", "sources.rows_per_unit=3")
    pipeline("exact", first.config, tmp_path / "out", *settings)
    found, [unique] = (list((tmp_path / "out").glob(f"{stage}/*/*.parquet")) for stage in ("candidates", "exact"))
    made = [pq.read_metadata(path) for path in found]
    assert [(file.num_rows, file.num_row_groups) for file in made] == [(3, 1)] * 4
    assert pq.read_metadata(unique).num_rows == rows


# ---- what is looked at before the work


@pytest.mark.parametrize("check", [True, False])
def test_shards_of_img2dataset_without_rows_are_the_users_to_mend(first: Site, tmp_path: Path, check: bool) -> None:
    """It leaves one where no URL of its part could be fetched. Beside a table that has rows it says nothing."""
    columns = dict.fromkeys(("url", "caption", "key", "status"), pa.array([], pa.string()))
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "shards/00000.parquet")
    (tmp_path / "shards/00000_stats.json").write_text("{}")
    (tmp_path / "empty.csv").write_text("url,caption\n")
    (tmp_path / "list.csv").write_text("url,caption\nhttp://e.org/1,a dog\n")
    places = [f"{tmp_path}/{name}" for name in ("shards", "empty.csv", "list.csv")]
    for wrong in (places[:1], places[:2]):
        with pytest.raises(InputError, match=rf"^sources\.paths: no rows in any of {len(wrong)} files; check that"):
            pipeline("run", first.config, tmp_path / "out", f"sources.paths={wrong}", check=check)
    assert not (tmp_path / "out").exists()
    pipeline("candidates", first.config, tmp_path / "out", f"sources.paths={places}", check=check)


@pytest.mark.parametrize("check", [True, False])
def test_lists_without_rows_are_the_users_to_mend(first: Site, tmp_path: Path, check: bool) -> None:
    (tmp_path / "a.csv").write_text("url,caption\n")
    pq.write_table(
        pa.table({"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())}), tmp_path / "b.parquet"
    )
    with pytest.raises(InputError, match=r"^sources\.paths: no rows in any of 2 files; check that"):
        pipeline("run", first.config, tmp_path / "out", f"sources.paths=['{tmp_path}']", check=check)
    assert not (tmp_path / "out").exists()


def test_check_says_which_sources_give_no_pair(first: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nhttp://e.org/1,a dog\n")
    (tmp_path / "b.txt").write_text("http://e.org/2\n")
    pipeline("run", first.config, tmp_path / "out", f"sources.paths=['{tmp_path}']", check=True)
    assert "; 1 lists of URLs (.txt), all of whose rows are rejected as no_caption" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"^sources\.paths: only lists of URLs without captions"):
        pipeline("run", first.config, tmp_path / "out", f"sources.paths=['{tmp_path}/*.txt']", check=True)


def test_a_missing_crawler_is_said_before_the_work(first: Site, tmp_path: Path) -> None:
    """In an interpreter that finds no img2dataset, for the engine of that name; one for all the commands."""
    program = (
        "import importlib.util, sys; found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'img2dataset' else found(name, *rest)\n"
        "from pipeline.contracts.cli import exit_code; from pipeline.__main__ import main\n"
        "for command in ('run --check', 'run', 'crawl'):\n"
        "    print(command, exit_code(main, [*command.split(), *sys.argv[1:]]))"
    )
    overrides = [f"run.out={tmp_path / 'out'}", "crawl.engine=img2dataset", "crawl.unguarded=true"]
    command = [sys.executable, "-c", program, "--config", str(first.config), *overrides]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.stdout.splitlines() == ["run --check 2", "run 2", "crawl 2"], ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    missing = "error: crawl.engine: 'img2dataset' is not installed; install it with pip install '.[pipeline]'"
    told = missing if sys.version_info < (3, 13) else "error: crawl.engine: 'img2dataset' needs a Python below 3.13"
    assert [line[: len(told)] for line in errors] == [told] * 3
    assert not (tmp_path / "out").exists()


def test_the_example_names_every_key_that_check_leaves_out() -> None:
    path = ROOT / "pipeline/configs/example.toml"
    config = load_config(PipelineConfig, str(path))
    left_out = {
        f"{table}.{key}"
        for table, values in config.model_dump().items()
        if isinstance(values, dict)
        for key in values
        if values[key] is None
    }
    named = re.search(r"ones that are unset: ([\w.,\s#]+?)\.\n", path.read_text())
    assert named
    assert left_out == set(re.split(r"[,\s#]+", named[1]))


# ---- what changes nothing


def test_the_same_command_again_does_nothing(first: Site, capsys: pytest.CaptureFixture[str]) -> None:
    hits, files, bytes_before = server.hits(first.web), committed(first.out), corpus(str(first.out))
    pipeline("run", first.config, first.out)
    assert server.hits(first.web) == hits
    assert committed(first.out) == files
    assert corpus(str(first.out)) == bytes_before
    shown = capsys.readouterr().out
    assert "state: done" in shown
    assert f"next: python -m pipeline verify {first.out}/shards/manifest.json" in shown


def test_one_worker_stage_by_stage_gives_the_same_bytes(
    first: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`filter` fetches nothing and stops there; `run` goes on from where it stopped."""
    hits = server.hits(first.web)
    pipeline("filter", first.config, tmp_path / "out", "engine.workers=1")
    following = shlex.join(["precap", "--config", str(first.config), f"run.out={tmp_path / 'out'}", "engine.workers=1"])
    assert f"next: python -m pipeline {following}\n" in capsys.readouterr().out
    assert server.hits(first.web) == hits
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["candidates", "exact", "filter", "run.json"]
    before = committed(tmp_path / "out")
    pipeline("run", first.config, tmp_path / "out", "engine.workers=1")
    assert before.items() <= committed(tmp_path / "out").items()
    assert corpus(str(tmp_path / "out")) == corpus(str(first.out))
    cli.main(["verify", str(tmp_path / "out")])


def test_another_cap_is_another_corpus_from_the_same_crawl(first: Site) -> None:
    hits, files, before = server.hits(first.web), committed(first.out), corpus(str(first.out))
    pipeline("run", first.config, first.out, "balance.cap=8")
    assert server.hits(first.web) == hits
    assert files.items() <= committed(first.out).items(), "what was committed must stay"
    assert len(list((first.out / "crawl").iterdir())) == 1
    changed = {name.split("/")[0] for name in committed(first.out).keys() - files.keys()}
    assert {name for name in changed if not name.startswith("balance")} == {"ledger", "shards"}
    found = manifest.load(str(first.out / "shards"))
    assert found.counts["balance"].rejected["over_cap"] > first.web.expected()["balance"].rejected["over_cap"]
    [ledger] = [
        path for path in (first.out / "ledger").glob("*/*.parquet") if str(path.relative_to(first.out)) not in files
    ]
    assert max(pq.read_table(ledger)["kept"].to_pylist()) == 8
    pipeline("run", first.config, first.out)
    assert server.hits(first.web) == hits
    assert corpus(str(first.out)) == before, "the first corpus is there again"
    assert len(list((first.out / "shards").glob("manifest-*.json"))) == 2


ROOMY = ("balance.cap=1000", "shard={bytes=2000000}")


@pytest.fixture(scope="module")
def roomy(first: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first run's output and, beside it, what a cap that cuts nothing and shards by bytes make of it."""
    out = tmp_path_factory.mktemp("roomy") / "out"
    shutil.copytree(first.out, out)
    pipeline("run", first.config, out, *ROOMY)
    return out


@pytest.mark.parametrize(
    ("setting", "redone"),
    [
        ("sources.rows_per_unit=37", {"candidates", "exact"}),
        ("sources.max_caption_bytes=8193", {"candidates"}),
        ("quality.max_words=201", {"filter"}),
        ("precap.per_query=100001", {"precap"}),
        ("dedup.image_quality=49", {"dedup"}),
        ("balance.cap=1001", {"balance", "ledger"}),
    ],
)
def test_a_setting_that_changes_no_row_costs_its_own_stage_only(
    first: Site, roomy: Path, tmp_path: Path, setting: str, redone: set[str]
) -> None:
    """The next stage finds what it made of the same rows although they now lie in another folder, and nothing is fetched again."""
    out = tmp_path / "out"
    shutil.copytree(roomy, out)
    hits, files, before = server.hits(first.web), committed(out), corpus(str(out))
    pipeline("run", first.config, out, *ROOMY, setting)
    made = committed(out).keys() - files.keys()
    assert {name.split("/")[0].split("-")[0] for name in made} == redone
    assert server.hits(first.web) == hits
    after = corpus(str(out))
    assert before.pop("manifest.json") != after.pop("manifest.json"), "the manifest has the settings"
    assert after == before
    cli.main(["verify", str(out)])


def sources_with_pictures(folder: Path, kind: str, seed: int) -> None:
    """Six pictures with their URLs and captions, which do not depend on `seed`; as img2dataset or webdataset writes them."""
    pictures = [scenes.picture_bytes(scenes.scene(seed, k, "held", None, single=True)) for k in range(6)]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    table: dict[str, object] = {
        "url": [f"https://example.org/{k}.jpg" for k in range(6)],
        "caption": [f"a dog, number {k}" for k in range(6)],
        "key": [f"{k:05d}" for k in range(6)],
        "status": ["success"] * 6,
    }
    if kind in ("webdataset of img2dataset", "tar"):
        with tarfile.open(folder / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for k, data in enumerate(pictures):
                # As long in both versions, so that the places in the tar are the same.
                members = {"jpg": data.ljust(400_000, b"\0"), "txt": f"a dog, number {k}".encode()}
                members["json"] = json.dumps({"url": f"https://example.org/{k}.jpg"}).encode()
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{k:05d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    elif kind == "files of img2dataset":
        (folder / "0").mkdir()
        for k, data in enumerate(pictures):
            (folder / "0" / f"{k:05d}.jpg").write_bytes(data)
    else:
        table["jpg"] = pa.array(pictures, pa.binary())
    if kind != "tar":
        pq.write_table(pa.table(table), folder / "0.parquet")
        (folder / "0_stats.json").write_text("{}")


@pytest.mark.parametrize("kind", ["parquet of img2dataset", "webdataset of img2dataset", "files of img2dataset", "tar"])
def test_other_pictures_in_the_sources_are_another_crawl(first: Site, tmp_path: Path, kind: str) -> None:
    """URLs and captions are the same, and so are the rows that the crawl takes; what lies in the sources or beside them is not."""
    (tmp_path / "queries.txt").write_text("dog\n")
    options = [f"sources.paths=['{tmp_path}/held']", f"filter.queries={tmp_path}/queries.txt"]
    sources_with_pictures(tmp_path / "held", kind, 1)
    pipeline("run", first.config, tmp_path / "out", *options)
    before = corpus(str(tmp_path / "out"))
    sources_with_pictures(tmp_path / "held", kind, 2)
    for out in ("out", "fresh"):
        pipeline("run", first.config, tmp_path / out, *options)
    assert manifest.load(str(tmp_path / "out" / "shards")).rows > 3
    assert before != corpus(str(tmp_path / "out")) == corpus(str(tmp_path / "fresh"))
    sources_with_pictures(tmp_path / "held", kind, 1)
    pipeline("run", first.config, tmp_path / "out", *options)
    assert corpus(str(tmp_path / "out")) == before
    assert len(list((tmp_path / "out" / "crawl").iterdir())) == 2


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("candidates", "tar"),
        ("crawl", "tar"),
        ("crawl", "webdataset of img2dataset"),
        ("crawl", "parquet of img2dataset"),
    ],
)
def test_sources_that_change_under_a_run_are_not_taken_for_what_they_were(
    first: Site, tmp_path: Path, stage: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other pictures are put there after the first look, when the stage begins: of the same size, or in the same rows."""
    (tmp_path / "queries.txt").write_text("dog\n")
    options = [f"sources.paths=['{tmp_path}/held']", f"filter.queries={tmp_path}/queries.txt"]
    sources_with_pictures(tmp_path / "held", kind, 1)
    with monkeypatch.context() as here:
        begin: Callable[..., Output] = getattr(pipeline_run, stage)

        def change(*arguments: object) -> Output:
            sources_with_pictures(tmp_path / "held", kind, 2)
            return begin(*arguments)

        here.setattr(pipeline_run, stage, change)
        with pytest.raises(RunError, match=r"held/0\.(tar|parquet): has changed since this run looked at it"):
            pipeline("run", first.config, tmp_path / "out", *options)
    # A unit without a row reads nothing of the sources: it may be done by then, or have been ended amid its commit.
    done = [Record.model_validate_json(path.read_bytes()) for path in (tmp_path / "out").glob(f"{stage}/*/[!.]*.json")]
    assert sum(record.rows_in for record in done) == 0
    for out in ("out", "fresh"):
        pipeline("run", first.config, tmp_path / out, *options)
    assert corpus(str(tmp_path / "out")) == corpus(str(tmp_path / "fresh"))


def test_check_prints_the_plan_and_touches_nothing(
    first: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, hits = listing(first.out), server.hits(first.web)
    pipeline("run", first.config, first.out, check=True)
    assert listing(first.out) == before
    pipeline("run", first.config, tmp_path / "new", "balance.cap=8", check=True)
    assert not (tmp_path / "new").exists()
    assert server.hits(first.web) == hits
    shown = capsys.readouterr().out
    one, other = (line.split()[-1] for line in shown.splitlines() if line.startswith("# config digest "))
    assert one == manifest.load(str(first.out / "shards")).config_digest
    assert one != other
    assert "# crawl       4 units of whole hosts" in shown
    assert "cap = 8" in shown
