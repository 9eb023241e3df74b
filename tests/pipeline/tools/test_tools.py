"""The optional stages and the operator's commands on a small web over real HTTP, all with one embedded Ray and one server.

`plain` is a run with the defaults. `strict` has everything that can be switched on: exact keys, a block list of three pictures of the plain
corpus, metaclip, shards by bytes.
"""

import base64
import collections
import hashlib
import html.parser
import itertools
import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline import __main__ as cli
from pipeline import status
from pipeline.config import PipelineConfig
from pipeline.content.text import normal_form
from pipeline.contracts import manifest
from pipeline.contracts.config import load_config
from pipeline.contracts.errors import AuditFinding, InputError
from pipeline.contracts.merkle import merkle_root, row_digest
from pipeline.tools import show, units
from tests.conftest import ROOT
from tests.e2e.pipelines import NO_WAITING, corpus, write_config, write_inputs
from tests.web import server
from tests.web.site import Kind, Web

PAIRS = 220
SHARD_BYTES = 100_000
CAP = 2
"""Small, so that pairs go whatever the server's port is: URLs have it, and draws are made by them (with 4, one port in some left all)."""


@dataclass(frozen=True)
class Runs:
    web: Web
    config: Path
    plain: Path
    strict: Path
    blocked: list[bytes]

    @property
    def options(self) -> list[str]:
        policies: list[dict[str, object]] = [
            {"name": "list", "hook": "pipeline.policy.block_list:source_hashes", "options": {"hashes": str(self.config.parent /
            "blocked.txt")}},
            {"name": "pii", "hook": "pipeline.policy.pii:captions"},
        ]  # fmt: skip
        text = ", ".join("{" + ", ".join(_toml(key, value) for key, value in one.items()) + "}" for one in policies)
        return [
            "dedup.exact=['url', 'caption', 'source']",
            f"policy=[{text}]",
            "balance.mode=metaclip",
            f"balance.cap={CAP}",
            "precap.per_query=8",
            f"shard={{bytes={SHARD_BYTES}}}",
        ]


def _toml(key: str, value: object) -> str:
    if isinstance(value, dict):
        return f"{key} = {{{', '.join(_toml(*item) for item in value.items())}}}"
    return f"{key} = '{value}'"


def pipeline(command: str, config: Path, out: Path, *overrides: str) -> None:
    cli.main([command, "--config", str(config), f"run.out={out}", *overrides])


def rows_of(folder: Path) -> pa.Table:
    """All rows of a corpus, and a check that they are in uid order."""
    found = manifest.load(str(folder))
    rows = pa.concat_tables([pq.read_table(manifest.shard_uri(str(folder), shard)) for shard in found.shards])
    uids = rows["uid"].to_pylist()
    assert all(one < two for one, two in itertools.pairwise(uids))
    return rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("web")
    with server.running(7, PAIRS, {**NO_WAITING, Kind.SECOND_CAPTION: 0.12}) as web:
        write_inputs(web, folder)
        config = write_config(web, str(folder), folder / "config.toml", shard_rows=40)
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        pipeline("run", config, folder / "plain")
        blocked = rows_of(folder / "plain/shards")["source_sha256"].to_pylist()[:60:20]
        (folder / "blocked.txt").write_text("".join(f"{sha.hex()}\n" for sha in blocked))
        found = Runs(web, config, folder / "plain", folder / "strict", blocked)
        pipeline("run", config, found.strict, *found.options)
        yield found
        ray.shutdown()


# ---- optional stages


def test_every_stage_adds_up_and_takes_what_the_one_before_left(runs: Runs) -> None:
    counts = manifest.load(str(runs.strict / "shards")).counts
    assert list(counts) == [
        "candidates", "exact", "filter", "exact-url", "exact-caption", "precap",
        "crawl", "policy", "exact-source", "dedup", "balance", "shards",
    ]  # fmt: skip
    for one, two in itertools.pairwise(counts.values()):
        assert one.rows_out == two.rows_in
    for count in counts.values():
        assert count.rows_in == count.rows_out + sum(count.rejected.values())
    assert counts["exact-url"].rejected.keys() == {"duplicate_url"}
    assert set(counts["exact-caption"].rejected) <= {"duplicate_caption"}
    assert counts["precap"].rejected.keys() == {"not_drawn"}
    assert counts["balance"].rejected.keys() == {"not_drawn"}
    cli.main(["verify", str(runs.strict)])


def test_each_url_caption_and_source_stands_once_in_the_strict_corpus(runs: Runs) -> None:
    rows, plain = rows_of(runs.strict / "shards"), rows_of(runs.plain / "shards")

    def repeated(table: pa.Table) -> list[int]:
        captions = [normal_form(text) for text in table["caption"].to_pylist()]
        columns = [table["url"].to_pylist(), captions, table["source_sha256"].to_pylist()]
        return [len(column) - len(set(column)) for column in columns]

    assert repeated(rows) == [0, 0, 0]
    assert repeated(plain)[0] > 3, "the plain corpus should have some, or the test shows nothing"


def test_the_same_source_once_from_the_same_crawl(runs: Runs, tmp_path: Path) -> None:
    """Second captions share a URL, so they share what was fetched. The crawl is not done again."""
    shutil.copytree(runs.plain, tmp_path / "out")
    hits = server.hits(runs.web)
    pipeline("run", runs.config, tmp_path / "out", "dedup.exact=['source']")
    assert server.hits(runs.web) == hits
    sources = rows_of(tmp_path / "out/shards")["source_sha256"].to_pylist()
    assert len(sources) == len(set(sources))
    gone = pa.concat_tables(
        [pq.read_table(path) for path in (tmp_path / "out").glob("exact-source/*/*.rejected.parquet")]
    )
    assert set(gone["reason"].to_pylist()) == {"duplicate_source"}
    assert gone.num_rows > 3


def test_blocked_pictures_are_rejected_by_name(runs: Runs) -> None:
    assert not set(rows_of(runs.strict / "shards")["source_sha256"].to_pylist()) & set(runs.blocked)
    gone = pa.concat_tables([pq.read_table(path) for path in runs.strict.glob("policy/*/*.rejected.parquet")])
    assert set(gone["detail"].to_pylist()) == {"list: on the block list"}
    fetched = pa.concat_tables([pq.read_table(path, columns=["uid", "source_sha256"]) for path in
    runs.strict.glob("crawl/*/*[0-9a-f].parquet")
                                if ".rejected" not in path.name])  # fmt: skip
    named = {row["uid"] for row in fetched.to_pylist() if row["source_sha256"] in runs.blocked}
    assert set(gone["uid"].to_pylist()) == named


def test_the_manifest_names_a_block_list_by_its_content(runs: Runs) -> None:
    listed = runs.config.parent / "blocked.txt"
    place = runs.strict / "shards/manifest.json"
    policies = json.loads(place.read_text())["config"]["policy"]
    assert [policy["options"] for policy in policies] == [
        {"hashes": hashlib.sha256(listed.read_bytes()).hexdigest()},
        {},
    ]
    assert str(listed.parent) not in place.read_text()


def test_the_ledger_says_what_was_drawn_and_kept(runs: Runs) -> None:
    [path] = runs.strict.glob("ledger/*/*.parquet")
    ledger = pq.read_table(path).to_pylist()
    rows = rows_of(runs.strict / "shards").to_pylist()
    kept = collections.Counter(row["query_id"] for row in rows)
    holding = collections.Counter(query for row in rows for query in row["query_ids"])
    for line in ledger:
        assert line["kept"] == kept[line["query_id"]]
        assert line["kept"] <= line["accepted"] <= min(line["assigned"], holding[line["query_id"]])
        assert line["assigned"] <= line["matched"]
        if line["assigned"] <= CAP:
            assert line["accepted"] == line["assigned"]
    assert sum(line["kept"] for line in ledger) == len(rows)
    assert max(line["assigned"] for line in ledger) > CAP


def test_shards_have_the_size_that_was_asked_for(runs: Runs) -> None:
    """The count of shards is the bytes of the stored pictures over the size, to within what equal shares of a row group are off."""
    found = manifest.load(str(runs.strict / "shards"))
    total = sum(len(image) for image in rows_of(runs.strict / "shards")["image"].to_pylist())
    assert abs(len(found.shards) - total / SHARD_BYTES) < 2
    assert len(found.shards) > 1


def test_one_worker_gives_the_same_bytes(runs: Runs, tmp_path: Path) -> None:
    pipeline("run", runs.config, tmp_path / "out", *runs.options, "engine.workers=1")
    assert corpus(str(tmp_path / "out")) == corpus(str(runs.strict))


def test_other_files_and_units_keep_the_same_rows(runs: Runs, tmp_path: Path) -> None:
    """Other ranges of the sources and other units of the crawl: every choice is made by uid, so every row is the same, bytes and all."""
    pipeline("run", runs.config, tmp_path / "out", *runs.options, "sources.rows_per_unit=37", "crawl.units=3")
    assert rows_of(tmp_path / "out/shards").equals(rows_of(runs.strict / "shards"))


def test_a_stage_that_is_left_out_is_told(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^policy: this configuration has no such stage; add \[\[policy\]\]"):
        pipeline("policy", runs.config, tmp_path / "out")
    with pytest.raises(
        InputError, match=r"^exact-url: this configuration has no such stage; add dedup\.exact = \['url'\]"
    ):
        pipeline("exact-url", runs.config, tmp_path / "out", "--check")


@pytest.mark.parametrize("stage", ["policy", "exact-url", "balance-odds", "ledger"])
def test_verify_reads_the_optional_stages_too(
    runs: Runs, tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs.strict, tmp_path / "out")
    damaged = sorted((tmp_path / "out").glob(f"{stage}/*/*.parquet"))[0]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(AuditFinding, match="1 differences"):
        cli.main(["verify", str(tmp_path / "out")])
    assert f"{damaged}: sha256 differs from the record" in capsys.readouterr().out


def test_verify_misses_the_manifest_and_compares_it_with_the_run(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the copies beside it nothing but the run can tell."""
    out = tmp_path / "out"
    shutil.copytree(runs.plain, out)
    for copy in out.glob("shards/manifest-*.json"):
        copy.unlink()
    place = out / "shards/manifest.json"
    values = json.loads(place.read_text())
    cli.main(["verify", str(out)])
    digests = {"config": {}, "config_digest": hashlib.sha256(b"{}").hexdigest()}
    counts = values["counts"] | {"dedup": {"rows_in": 3, "rows_out": 2, "rejected": {"near_duplicate": 1}}}
    for changes, said in (
        (digests, "config_digest is not that of run.json"),
        ({"counts": counts}, "counts.dedup is not what the records add up to"),
        ({"counts": values["counts"] | {"own": counts["dedup"]}}, "counts.own is not what the records add up to"),
        (None, "is missing, but the stage shards was done; restore it, or run the same command again"),
    ):
        place.unlink() if changes is None else place.write_text(json.dumps(values | changes))
        capsys.readouterr()
        with pytest.raises(AuditFinding, match="1 differences"):
            cli.main(["verify", str(out)])
        assert f"{place}: {said}" in capsys.readouterr().out


# ---- show


@pytest.mark.parametrize("with_a_copy", [False, True])
def test_show_tells_the_history_of_a_row_of_the_corpus(
    runs: Runs, capsys: pytest.CaptureFixture[str], with_a_copy: bool
) -> None:
    """A row that the sources name twice has one uid: its history tells of the copy too, where it was rejected."""
    copies = {
        uid for path in runs.strict.glob("exact/*/*.rejected.parquet") for uid in pq.read_table(path)["uid"].to_pylist()
    }
    rows = rows_of(runs.strict / "shards").to_pylist()
    number = next(number for number, row in enumerate(rows) if (row["uid"] in copies) == with_a_copy)
    row = rows[number]
    capsys.readouterr()
    cli.main(["show", str(runs.strict), row["uid"].hex()])
    lines = capsys.readouterr().out.splitlines()
    verdicts = [line.split()[:2] for line in lines[1:] if line.split()[0] not in ("dedup", "proof", "corpus")]
    kept = [stage for stage, verdict in verdicts if verdict == "kept"]
    assert kept == [
        "candidates", *(["candidates"] if with_a_copy else []), "exact", "filter", "exact-url", "exact-caption", "precap",
        "crawl-split", "crawl", "policy", "exact-source", "balance", "shards",
    ]  # fmt: skip
    assert [stage for stage, verdict in verdicts if verdict != "kept"] == (["exact"] if with_a_copy else [])
    text = "\n".join(lines)
    assert row["url"] in text
    assert row["source_sha256"].hex() in text
    assert f"row {number} of {len(rows)}" in text
    assert re.search(r"^proof +its leaf [0-9a-f]{16}… leads to the content root", text, re.MULTILINE)
    query = (runs.config.parent / "queries.txt").read_text().splitlines()[row["query_id"]]
    assert f"counted for {query!r} ({row['query_id']})" in text


def test_show_tells_why_a_row_was_rejected(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [(runs.strict, name) for name in ("filter", "exact-url", "crawl", "policy", "balance")]
    for out, stage in [*cases, (runs.plain, "dedup")]:
        row = pa.concat_tables([pq.read_table(path) for path in out.glob(f"{stage}/*/*.rejected.parquet")]).to_pylist()[
            0
        ]
        capsys.readouterr()
        cli.main(["show", str(out), row["uid"].hex()])
        lines = capsys.readouterr().out.splitlines()
        [told] = [line for line in lines if line.startswith(f"{stage} ") and " rejected " in line]
        assert row["reason"] in told
        assert row["detail"] is None or row["detail"] in told
        assert lines[-1] == "corpus        the row is not in it"


def test_show_tells_for_whom_a_row_stays(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    gone = pa.concat_tables(
        [pq.read_table(path) for path in runs.plain.glob("dedup/*/*.rejected.parquet")]
    ).to_pylist()[0]
    capsys.readouterr()
    cli.main(["show", str(runs.plain), gone["detail"].split()[0]])
    assert re.search(f"^dedup +stays for .*{gone['uid'].hex()}", capsys.readouterr().out, re.MULTILINE)


def test_show_gives_a_terminal_nothing_to_obey(tmp_path: Path) -> None:
    """Of a URL from the web: C1's control sequences, and signs that turn the direction of a line."""
    row: show.Row = {"url": "http://a/\x9b2J\u202e", "caption_raw": "\x1b[2J", "source": "list.csv#0"}
    told = show._facts("candidates", row, show._Queries(str(tmp_path), []))
    assert told == r"'http://a/\x9b2J\u202e'  '\x1b[2J'  (from list.csv#0)"


@pytest.mark.parametrize(("uid", "said"), [("xyz", "is no uid"), ("00" * 16, "no stage has seen the uid")])
def test_show_of_nothing(runs: Runs, uid: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        cli.main(["show", str(runs.strict), uid])


def test_the_same_rows_in_other_shards_have_proofs_too(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The root is the same, the parts of the tree that shards give are not; and the corpus of before can still be verified."""
    out = tmp_path / "out"
    shutil.copytree(runs.plain, out)
    before = manifest.load(str(out / "shards"))
    [old] = (out / "shards").glob("manifest-*.json")
    pipeline("run", runs.config, out, "shard={rows=11}")
    after = manifest.load(str(out / "shards"))
    assert after.content_root == before.content_root
    assert len(after.shards) > len(before.shards)
    for uid in rows_of(out / "shards")["uid"].to_pylist()[::40]:
        capsys.readouterr()
        cli.main(["show", str(out), uid.hex()])
        assert re.search(
            r"^proof +its leaf [0-9a-f]{16}… leads to the content root", capsys.readouterr().out, re.MULTILINE
        )
    cli.main(["verify", str(out)])
    cli.main(["verify", str(old)])


def test_show_sees_a_picture_that_was_exchanged(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The proof hashes the shard's own bytes; an index that still says otherwise does not help."""
    found = manifest.load(str(runs.plain / "shards"))
    copied = tmp_path / "out"
    shutil.copytree(runs.plain, copied)
    shard = copied / "shards" / found.shards[0].path
    row = pq.read_table(shard).slice(0, 1).to_pylist()[0]
    data = bytearray(shard.read_bytes())
    place = data.index(row["image"]) + len(row["image"]) // 2
    data[place] ^= 1
    shard.write_bytes(data)
    cli.main(["show", str(copied), row["uid"].hex()])
    assert "does NOT lead to the content root" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["empty", "garbage", "columns"])
def test_a_damaged_help_for_proofs_is_told_and_not_used(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    shutil.copytree(runs.plain, tmp_path / "out")
    [place] = (tmp_path / "out/shards").glob("subtrees-*.parquet")
    uid = rows_of(tmp_path / "out/shards")["uid"][3].as_py().hex()
    cli.main(["show", str(tmp_path / "out"), uid])
    whole = capsys.readouterr().out
    assert not caplog.records
    place.write_bytes({"empty": b"", "garbage": place.read_bytes()[:-40], "columns": b""}[damage])
    if damage == "columns":
        pq.write_table(pa.table({"start": [0]}), place)
    cli.main(["show", str(tmp_path / "out"), uid])
    assert capsys.readouterr().out == whole
    assert "leads to the content root" in whole
    assert [record.getMessage() for record in caplog.records] == [
        f"{place}: is damaged or of other rows; all indexes are read instead; delete it"
    ]
    with pytest.raises(AuditFinding, match="1 differences"):
        cli.main(["verify", str(tmp_path / "out")])
    assert f"{place}: differs from the rows; delete it, proofs then read the indexes" in capsys.readouterr().out


def test_the_history_stays_when_a_single_stage_is_run_again(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the commands say is what they said before, but for the mark on what the last run has not reached."""
    out = tmp_path / "out"
    shutil.copytree(runs.plain, out)
    uid = rows_of(out / "shards")["uid"][3].as_py().hex()

    def said(*command: str) -> list[str]:
        capsys.readouterr()
        cli.main(list(command))
        return capsys.readouterr().out.splitlines()

    plan = ("plan", "--config", str(ROOT / "pipeline/configs/plan.toml"), "--from", str(out), "target.matched=1000")
    commands = (("show", str(out), uid), plan, ("status", str(out)))
    sheet = tmp_path / "sheet.html"
    before = [said(*command) for command in commands]
    cli.main(["contact-sheet", str(out), "--out", str(sheet)])
    shown = sheet.read_text()
    pipeline("filter", runs.config, out)
    history, planned, state = (said(*command) for command in commands)
    assert [line.removesuffix("  (in an earlier run)") for line in history] == before[0]
    marked = {line.split()[0] for line in history if line.endswith("  (in an earlier run)")}
    assert marked >= {"precap", "crawl", "balance", "shards"}
    assert not marked & {"candidates", "exact", "filter"}
    assert planned == before[1]
    assert [line for line in state if not line.startswith("not reached by the last run")] == before[2]
    cli.main(["contact-sheet", str(out), "--out", str(sheet)])
    assert sheet.read_text() == shown
    cli.main(["verify", str(out)])
    damaged = sorted(out.glob("balance/*/*.parquet"))[0]
    damaged.unlink()
    with pytest.raises(AuditFinding, match="1 differences"):
        cli.main(["verify", str(out)])


# ---- plan


def test_the_plan_counts_the_units_that_a_run_has(runs: Runs) -> None:
    """But those of candidates: the plan takes the sources to be Parquet, and these are text, too."""
    config = load_config(PipelineConfig, str(runs.config))
    counts = {
        name: (one.rows_in, one.rows_out) for name, one in manifest.load(str(runs.plain / "shards")).counts.items()
    }
    planned = units.cut(config, counts, picture_bytes=1, shard_bytes=1)
    found = {stage.name: stage.units for stage in status.stages(str(runs.plain))}
    assert {name: one.units for name, one in planned.items() if name != "candidates"} == {
        name: found[name] for name in planned if name != "candidates"
    }
    assert found["shards"] > 2
    assert found["crawl"] == 4


# ---- exclude


def host_of(row: dict[str, Any]) -> str:
    return str(row["url"].split("/")[2].split(":")[0])


def test_exclude_writes_a_version_without_the_named_rows(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(runs.plain / "shards").to_pylist()
    ids, urls, shas = rows[3:5], rows[10:12], rows[20:22]
    named = {host_of(row) for row in (*ids, *urls, *shas)}  # a host that has one of them would take it first
    host = next(host_of(row) for row in rows[30:] if host_of(row) not in named)
    (tmp_path / "ids.txt").write_text(
        "# removal request 7\n\n" + "".join(f"{row['uid'].hex()}\n" for row in ids) + "ff" * 16 + "\n"
    )
    (tmp_path / "urls.txt").write_text("".join(f"{row['url']}\n" for row in urls))
    pq.write_table(pa.table({"sha256": [shas[0]["source_sha256"], shas[1]["image_sha256"]]}), tmp_path / "sha.parquet")
    (tmp_path / "domains.txt").write_text(f"{host}\n")
    arguments = [
        "exclude", "--ids", str(tmp_path / "ids.txt"), f"corpus={runs.plain / 'shards'}", f"out={tmp_path / 'new'}",
        f"urls={tmp_path / 'urls.txt'}", f"domains={tmp_path / 'domains.txt'}", f"sha256={tmp_path / 'sha.parquet'}",
    ]  # fmt: skip
    cli.main([*arguments[:3], "--check", *arguments[3:]])
    assert "3 ids, 2 urls, 1 domains, 2 sha256 from" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    cli.main(arguments)
    assert f"ids: 1 of the list are not in the corpus, the first is {'ff' * 16}\n" in capsys.readouterr().out
    truth: dict[bytes, str] = {}
    for row in rows:
        if row["uid"] in {one["uid"] for one in ids}:
            truth[row["uid"]] = "excluded_uid"
        elif row["url"] in {one["url"] for one in urls}:
            truth[row["uid"]] = "excluded_url"
        elif host_of(row) == host:
            truth[row["uid"]] = "excluded_domain"
        elif row["source_sha256"] == shas[0]["source_sha256"] or row["image_sha256"] == shas[1]["image_sha256"]:
            truth[row["uid"]] = "excluded_sha256"
    left = rows_of(tmp_path / "new").to_pylist()
    assert left == [row for row in rows if row["uid"] not in truth]
    gone = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "new").glob("exclude/*/*.rejected.parquet")])
    assert dict(zip(gone["uid"].to_pylist(), gone["reason"].to_pylist(), strict=True)) == truth
    old, new = manifest.load(str(runs.plain / "shards")), manifest.load(str(tmp_path / "new"))
    assert new.parents == [old.content_root]
    assert new.counts["exclude"].rejected == dict(sorted(collections.Counter(truth.values()).items()))
    assert set(new.counts["exclude"].rejected) == {"excluded_uid", "excluded_url", "excluded_domain", "excluded_sha256"}
    assert new.content_root == merkle_root(row_digest(row["uid"], row["caption"], row["image_sha256"]) for row in left)
    cli.main(["verify", str(tmp_path / "new")])


def test_exclude_leaves_untouched_shards_as_they_are_and_resumes(runs: Runs, tmp_path: Path) -> None:
    rows = rows_of(runs.plain / "shards").to_pylist()
    (tmp_path / "ids.txt").write_text(rows[0]["uid"].hex())
    arguments = [
        "exclude",
        "--ids",
        str(tmp_path / "ids.txt"),
        f"corpus={runs.plain / 'shards'}",
        f"out={tmp_path / 'new'}",
    ]
    cli.main(arguments)
    old, new = manifest.load(str(runs.plain / "shards")), manifest.load(str(tmp_path / "new"))
    assert [shard.sha256 for shard in new.shards[1:]] == [shard.sha256 for shard in old.shards[1:]]
    assert new.shards[0].rows == old.shards[0].rows - 1
    # A unit that was lost with its record is done again, the others are not.
    records = sorted((tmp_path / "new").glob("exclude/*/*.json"))
    records[0].unlink()
    times = {path: path.stat().st_mtime_ns for path in records[1:]}
    before = (tmp_path / "new/manifest.json").read_bytes()
    cli.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in records[1:]} == times
    assert (tmp_path / "new/manifest.json").read_bytes() == before
    damaged = tmp_path / "new" / new.shards[1].path
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"X")
    with pytest.raises(AuditFinding):
        cli.main(["verify", str(tmp_path / "new")])


def test_the_same_takedown_from_the_same_rows_in_other_shards(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(runs.plain, out)
    (tmp_path / "ids.txt").write_text(rows_of(out / "shards")["uid"][0].as_py().hex())
    takedown = ["exclude", f"corpus={out / 'shards'}", f"ids={tmp_path / 'ids.txt'}"]
    cli.main([*takedown, f"out={tmp_path / 'new'}"])
    pipeline("run", runs.config, out, "shard={rows=11}")
    for name in ("new", "own"):
        cli.main([*takedown, f"out={tmp_path / name}"])
        cli.main(["verify", str(tmp_path / name)])
    assert (tmp_path / "new/manifest.json").read_bytes() == (tmp_path / "own/manifest.json").read_bytes()


def test_a_second_takedown_needs_a_folder_of_its_own(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first one's rows would be back. Of each list it is said what named no row."""
    rows = rows_of(runs.plain / "shards").to_pylist()
    # First two that have nothing in common with another row, which may be one of those whose URL or picture is listed.
    count = collections.Counter(word for row in rows for word in (row["url"], row["source_sha256"]))
    single = [row for row in rows if count[row["url"]] == count[row["source_sha256"]] == 1][:2]
    rows = single + [row for row in rows if row not in single]
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(rows[number]["uid"].hex())
    (tmp_path / "urls.txt").write_text(f"{rows[2]['url']}#top\nhttp://Nowhere.example/1.jpg\n")
    (tmp_path / "domains.txt").write_text("nowhere.example\n")
    (tmp_path / "sha256.txt").write_text(f"{'ab' * 32}\n{rows[3]['source_sha256'].hex()}\n")
    first = [f"corpus={runs.plain / 'shards'}", f"out={tmp_path / 'new'}", f"ids={tmp_path / '0.txt'}"]
    first += [f"{kind}={tmp_path / kind}.txt" for kind in ("urls", "domains", "sha256")]
    cli.main(["exclude", *first])
    told = [line for line in capsys.readouterr().out.splitlines() if "of the list are not" in line]
    assert told == [
        "urls: 1 of the list are not in the corpus, the first is http://Nowhere.example/1.jpg",
        "domains: 1 of the list are not in the corpus, the first is nowhere.example",
        f"sha256: 1 of the list are not in the corpus, the first is {'ab' * 32}",
    ]
    before = {path: path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"new/run\.json: is of another corpus, other lists or another command"):
        cli.main(["exclude", *first[:2], f"ids={tmp_path / '1.txt'}"])
    assert {path: path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file()} == before
    cli.main(["exclude", f"corpus={tmp_path / 'new'}", f"out={tmp_path / 'newer'}", f"ids={tmp_path / '1.txt'}"])
    cli.main(["verify", str(tmp_path / "newer")])
    counts = [manifest.load(str(tmp_path / name)).counts for name in ("new", "newer")]
    assert list(counts[1].items())[:-1] == list(counts[0].items()), "the first takedown stays in the accounting"
    assert list(counts[1])[-2:] == ["exclude", "exclude-2"]
    assert counts[1]["exclude-2"].rows_in == counts[1]["exclude"].rows_out
    assert counts[1]["exclude-2"].rejected == {"excluded_uid": 1}
    kept = rows_of(tmp_path / "newer").to_pylist()
    for row, verdict, last in (
        (kept[5], "kept", f"leads to the content root {manifest.load(str(tmp_path / 'newer')).content_root[:16]}"),
        (rows[1], "rejected  excluded_uid", "the row is not in it"),
    ):
        capsys.readouterr()
        cli.main(["show", str(tmp_path / "newer"), row["uid"].hex()])
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].startswith(f"exclude-2     {verdict}")
        assert last in lines[-1]
    cli.main(["contact-sheet", str(tmp_path / "newer"), "--rows", "4", "--out", str(tmp_path / "sheet.html")])
    queries = (runs.config.parent / "queries.txt").read_text().splitlines()
    page = Page()
    page.feed((tmp_path / "sheet.html").read_text())
    shown = [row for row in kept if row["uid"].hex() in page.text]
    assert len(shown) == 4
    assert all(any(f"{queries[row['query_id']]} (counted)" in part for part in page.text) for row in shown)
    left = {row["uid"] for row in kept}
    # A URL with two captions has two rows, which have what was fetched in common.
    gone = [row for row in rows if row["url"] == rows[2]["url"] or row["source_sha256"] == rows[3]["source_sha256"]]
    assert left == {row["uid"] for row in rows} - {row["uid"] for row in [*rows[:2], *gone]}


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ([], r"exclude: no list is given; add one of ids=FILE, urls=FILE, domains=FILE, sha256=FILE"),
        (["ids=bad.txt"], r"bad\.txt: line 1: 'abc' is no hash of 32 hexadecimal digits"),
        (["domains=urls.txt"], r"urls\.txt: line 1: 'http://e\.org/x' is no domain"),
        (["urls=empty.txt"], r"empty\.txt: nothing in the list"),
        (["ids=none.txt"], r"none\.txt: no such file"),
    ],
)
def test_exclude_tells_what_is_wrong_before_the_work(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_text("abc\n")
    Path("urls.txt").write_text("http://e.org/x\n")
    Path("empty.txt").write_text("# nothing\n\n")
    with pytest.raises(InputError, match=said):
        cli.main(["exclude", f"corpus={runs.plain / 'shards'}", "out=new", *lists])
    assert not Path("new").exists()


@pytest.mark.parametrize("damage", ["story", "file"])
def test_a_takedown_does_not_fail_for_the_texts_of_queries(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    shutil.copytree(runs.plain, tmp_path / "out")
    row = rows_of(runs.plain / "shards").slice(0, 1).to_pylist()[0]
    (tmp_path / "ids.txt").write_text(row["uid"].hex())
    [ledger] = (tmp_path / "out").glob("ledger/*/*.parquet")
    damaged = tmp_path / "out/run.json" if damage == "story" else ledger
    damaged.write_bytes(damaged.read_bytes()[:-9])
    caplog.clear()
    corpus_of_it = tmp_path / "out/shards"
    cli.main(["exclude", f"corpus={corpus_of_it}", f"out={tmp_path / 'new'}", f"ids={tmp_path / 'ids.txt'}"])
    assert [record.getMessage().split(" (")[0] for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path / 'out'}: no ledger is read from it, so that queries have no texts"
    ]
    assert rows_of(tmp_path / "new").num_rows == rows_of(corpus_of_it).num_rows - 1
    assert not (tmp_path / "new/ledger").exists()


def test_exclude_does_not_write_into_the_corpus_itself(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("00" * 16)
    shards = runs.plain / "shards"
    with pytest.raises(InputError, match="is the folder of the corpus itself"):
        cli.main(["exclude", f"corpus={shards}", f"out={shards}", f"ids={tmp_path / 'ids.txt'}"])
    with pytest.raises(InputError, match=r"^command line: corpus: missing; give corpus=VALUE"):
        cli.main(["exclude", f"out={shards}"])


# ---- contact sheet


class Page(html.parser.HTMLParser):
    """What a sheet shows: sources of pictures, text, and every attribute that could ask for something."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text: list[str] = []
        self.tags: collections.Counter[str] = collections.Counter()
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.sources.append(value or "")
            elif name in ("src", "href", "srcset", "action", "data", "background", "style") or name.startswith("on"):
                self.references.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_contact_sheet_shows_a_fair_sample_and_asks_for_nothing(runs: Runs, tmp_path: Path) -> None:
    rows = {row["uid"].hex(): row for row in rows_of(runs.plain / "shards").to_pylist()}
    for name in ("one.html", "two.html"):
        cli.main(["contact-sheet", str(runs.plain), "--rows", "30", "--out", str(tmp_path / name)])
    text = (tmp_path / "one.html").read_text()
    assert text == (tmp_path / "two.html").read_text()
    page = Page()
    page.feed(text)
    assert page.references == []
    assert "url(" not in text
    assert "default-src 'none'" in text
    shown = [rows[part] for part in page.text if part in rows]
    assert len(shown) == len(page.sources) == page.tags["figure"] == 30
    assert len({row["uid"] for row in shown}) == 30
    queries = (runs.config.parent / "queries.txt").read_text().splitlines()
    for row, source in zip(shown, page.sources, strict=True):
        kind, _, data = source.partition(";base64,")
        assert kind == f"data:image/{row['format']}"
        assert hashlib.sha256(base64.b64decode(data)).digest() == row["image_sha256"]
        assert row["caption"] in page.text
        assert row["url"] in page.text
        assert any(f"{queries[row['query_id']]} (counted)" in part for part in page.text)


def test_a_hostile_caption_is_text_on_the_sheet(tmp_path: Path) -> None:
    from tests.pipeline.contracts.test_manifest import rows

    table = rows(3)
    evil = '"><script>alert(1)</script><img src=http://e.org/x onerror=alert(1)>'
    columns = {"caption": evil, "caption_raw": evil, "url": f"http://e.org/{evil}"}
    for name, value in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array([value] * 3))
    manifest.write_corpus(str(tmp_path / "corpus"), [table])
    cli.main(["contact-sheet", str(tmp_path / "corpus"), "--out", str(tmp_path / "sheet.html")])
    page = Page()
    page.feed((tmp_path / "sheet.html").read_text())
    assert page.tags["script"] == 0
    assert page.references == []
    assert evil in page.text


def test_a_sheet_of_nothing(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--rows 0: give 1 to"):
        cli.main(["contact-sheet", str(runs.plain), "--rows", "0", "--out", str(tmp_path / "x.html")])
    manifest.write_corpus(str(tmp_path / "empty"), [rows_of(runs.plain / "shards").slice(0, 0)])
    with pytest.raises(InputError, match="has no rows"):
        cli.main(["contact-sheet", str(tmp_path / "empty"), "--out", str(tmp_path / "x.html")])


def test_status_of_a_finished_run_that_is_watched_ends(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    cli.main(["status", str(runs.plain), "--watch"])
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == "state: done"
    assert json.loads((runs.plain / "run.json").read_text())["state"] == "done"
