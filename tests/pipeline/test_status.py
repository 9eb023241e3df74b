"""`status` and `verify` read what the engine's own `commit` wrote; damage is done to real files by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import records, status
from pipeline.__main__ import main
from pipeline.commit import Result, Stage, Unit, commit, stage_folder
from pipeline.contracts import manifest, storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import AuditFinding, InputError
from pipeline.contracts.schema import SHARD_SCHEMA, Reason, rejected_rows

ROWS = pa.table({"number": pa.array(range(6), pa.int64())})


def nothing(unit: Unit) -> pa.Table:
    raise AssertionError("only committed, never run")


def no_work(table: pa.Table, unit: Unit) -> Result:
    raise AssertionError("only committed, never run")


def leave(out: Path, name: str, units: int, *, accounted: bool = True) -> list[Path]:
    """Commit units of six rows, two of them rejected for two reasons; returns the output files."""
    stage = Stage(name, name.encode().hex().ljust(64, "0"), nothing, no_work, accounted=accounted)
    folder = stage_folder(str(out), stage)
    written = []
    for number in range(units):
        gone = [rejected_rows(ROWS.slice(4, 1), Reason.NO_QUERY), rejected_rows(ROWS.slice(5), Reason.EMPTY_CAPTION)]
        result = Result(ROWS.slice(0, 4), pa.concat_tables(gone))
        record, ours = commit(stage, folder, Unit(f"{number:05d}"), {"host": "here", "pid": 1}, 6, result, 0.0)
        assert ours
        written.append(Path(folder, record.output.name))
    return written


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run that was interrupted in its second stage: two of three units, one temporary file."""
    leave(tmp_path, "exact", 2)
    leave(tmp_path, "helper", 1, accounted=False)
    files = leave(tmp_path, "filter", 2)
    (files[0].parent / f"{storage.TEMPORARY_MARK}0123-00002.parquet").write_bytes(b"PAR1")
    stages: list[Json] = [
        {"name": name, "folder": f"{name}/{name.encode().hex().ljust(64, '0')[:12]}", "units": units}
        for name, units in (("exact", 2), ("helper", 1), ("filter", 3))
    ]
    told: dict[str, Json] = {"state": "failed", "error": "RunError: no memory", "stages": stages}
    (tmp_path / "run.json").write_text(json.dumps(told))
    return tmp_path


def test_status_counts_what_records_say(out: Path) -> None:
    lines = status.describe(str(out)).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["exact", "2/2", "12", "8", "2", "empty_caption,", "2", "no_query"],
        ["filter", "2/3", "12", "8", "2", "empty_caption,", "2", "no_query"],
    ]
    assert lines[3:] == [
        "1 temporary files of interrupted units remain; no reader looks at them",
        "state: failed (RunError: no memory)",
    ]


def test_a_stage_without_records_is_shown_as_not_begun(tmp_path: Path) -> None:
    told = {"state": "running", "error": None, "stages": [{"name": "crawl", "folder": "crawl/0123", "units": 1200}]}
    (tmp_path / "run.json").write_text(json.dumps(told))
    shown = status.describe(str(tmp_path)).splitlines()
    assert shown[1].split() == ["crawl", "0/1,200", "0", "0", "-"]
    assert shown[2:] == ["crawl: 1,200 units left, none of this run has ended yet", "state: running"]


def test_a_run_that_goes_on_has_its_pace_and_the_time_left(out: Path) -> None:
    """Two of three units of six rows have ended; the pace counts from the start of the first of them."""
    told = json.loads((out / "run.json").read_text()) | {"state": "running", "error": None, "started": 0.0}
    (out / "run.json").write_text(json.dumps(told))
    begun = min(record.started for record in status.stages(str(out))[2].records)
    lines = status.describe(str(out), begun + 4.0).splitlines()
    assert lines[3] == "filter: 3.0 rows/s, 0.50 units/s, 1 units left, about 2 s"
    (out / "run.json").write_text(json.dumps(told | {"started": begun + 1e6}))
    assert status.describe(str(out)).splitlines()[3] == "filter: 1 units left, none of this run has ended yet"


def test_a_watched_run_whose_driver_was_killed_is_left(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    owner = {**records.this_process(), "pid": process.pid, "started": records.start_ticks(process.pid)}
    process.kill()
    process.wait()
    told = json.loads((out / "run.json").read_text()) | {"state": "running", "error": None, "owner": owner}
    (out / "run.json").write_text(json.dumps(told))
    main(["status", str(out), "--watch"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "state: ended without a word (killed); the same command again resumes"
    assert not [line for line in lines if "units left" in line], "nobody works on what is left"


def test_of_a_driver_on_another_machine_it_is_said_that_nothing_is_known(out: Path) -> None:
    owner = {"host": "elsewhere", "pid": 7, "started": "1"}
    told = json.loads((out / "run.json").read_text()) | {"state": "running", "error": None, "owner": owner}
    (out / "run.json").write_text(json.dumps(told))
    lines = status.describe(str(out)).splitlines()
    assert lines[-1] == "state: running (process 7 of elsewhere, of which nothing is known here)"


def test_stages_of_an_earlier_run_are_told_apart(out: Path) -> None:
    """They have no pace, and an incomplete one is no loss; one that was done is."""
    told = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(
        json.dumps(told | {"state": "done", "error": None, "stages": told["stages"][:1], "earlier": told["stages"][1:]})
    )
    lines = status.describe(str(out)).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["exact", "not", "filter"]
    assert lines[2] == "not reached by the last run, as an earlier one of this configuration left them:"
    assert lines[5:] == ["state: done"]
    assert status.verify(str(out)) == []
    told["stages"][2]["done"] = True
    (out / "run.json").write_text(json.dumps(told | {"stages": told["stages"][:1], "earlier": told["stages"][1:]}))
    folder = next(out.glob("filter/*"))
    assert status.verify(str(out)) == [
        f"{folder}: 2 records of 3 units, but the stage was done; restore them or run again"
    ]


@pytest.mark.parametrize("command", ["status", "verify"])
def test_a_place_without_a_run_is_the_users_mistake(tmp_path: Path, command: str) -> None:
    with pytest.raises(InputError, match=r"no run\.json here; give the run\.out of a pipeline run"):
        main([command, str(tmp_path)])


def test_an_untouched_run_verifies(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(out)])
    assert capsys.readouterr().out == f"{out}: everything is as it was recorded\n"
    assert status.verify(str(out / "run.json")) == []


def test_verify_names_every_damaged_file(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted(path for path in out.glob("exact/*/*.parquet") if "rejected" not in path.name)
    changed = bytearray(first.read_bytes())
    changed[len(changed) // 2] ^= 1
    first.write_bytes(changed)
    second.unlink()
    with pytest.raises(AuditFinding, match="2 differences from what was recorded"):
        main(["verify", str(out)])
    assert capsys.readouterr().out.splitlines() == [
        f"{first}: sha256 differs from the record; move it and 00000.json away and run again",
        f"{second}: is missing; move its record 00001.json away and run again",
    ]


def test_verify_adds_up_the_rows_of_every_record(out: Path) -> None:
    place = next(out.glob("filter/*/00001.json"))
    told = json.loads(place.read_text())
    place.write_text(json.dumps({**told, "rows_out": 5}))
    assert status.verify(str(out)) == ["filter: unit 00001: rows do not add up; restore its record"]


def edit(place: Path, **changes: Json) -> None:
    place.write_text(json.dumps(json.loads(place.read_text()) | changes))


def test_verify_counts_the_rows_of_the_files(out: Path) -> None:
    """Also where the numbers of the record go together: rows out, rows of its files, reasons, bytes."""
    place = next(out.glob("filter/*/00001.json"))
    whole = json.loads(place.read_text())
    output, rejected = whole["output"], whole["rejected_file"]
    said = "filter: unit 00001: counts other rows than its files hold; restore its record"
    for changes in (
        {"rows_in": 1006, "rows_out": 1004},
        {"rows_in": 1006, "rows_out": 1004, "output": [*output[:1], 1004, *output[2:]]},
        {"rows_in": 7, "rejected": {"no_query": 2, "empty_caption": 1}},
        {"rejected": {"no_query": 2}},
        {"rejected_file": [*rejected[:1], 3, *rejected[2:]]},
    ):
        edit(place, **changes)
        assert status.verify(str(out)) == [said]
        place.write_text(json.dumps(whole))
    edit(place, output=[*output[:2], output[2] + 1, *output[3:]])
    [problem] = status.verify(str(out))
    assert problem.endswith(f"{output[2]:,} bytes, its record 00001.json says {output[2] + 1:,}; restore the record")


def test_verify_counts_the_rows_from_stage_to_stage(tmp_path: Path) -> None:
    """Not through a step whose rows are no pairs, and not where units are left to do."""
    leave(tmp_path, "exact", 3)
    leave(tmp_path, "helper", 1, accounted=False)
    leave(tmp_path, "filter", 2)
    entries: list[dict[str, Json]] = [
        {"name": name, "folder": f"{name}/{name.encode().hex().ljust(64, '0')[:12]}", "units": units}
        for name, units in (("exact", 3), ("helper", 1), ("filter", 2))
    ]
    (tmp_path / "run.json").write_text(json.dumps({"state": "done", "stages": entries}))
    assert status.verify(str(tmp_path)) == []
    next(tmp_path.glob("exact/*/00002.json")).unlink()
    edit(tmp_path / "run.json", state="failed")
    assert status.verify(str(tmp_path)) == []
    edit(tmp_path / "run.json", stages=[{**entries[0], "units": 2}, *entries[1:]])
    assert status.verify(str(tmp_path)) == [
        "filter: 12 rows in, but exact left 8; restore the records of both",
    ]


def test_a_half_written_record_is_no_record(out: Path) -> None:
    """What a task leaves that was killed while it wrote one."""
    before = status.describe(str(out)).replace("1 temporary", "2 temporary")
    folder = next(out.glob("filter/*"))
    (folder / f"{storage.TEMPORARY_MARK}0123456789ab-00000.json").write_bytes(b'{"version"')
    assert status.describe(str(out)) == before
    assert status.verify(str(out)) == []


def test_a_finished_run_has_a_record_for_every_unit(out: Path) -> None:
    told = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**told, "state": "done", "error": None}))
    folder = next(out.glob("filter/*"))
    assert status.verify(str(out)) == [
        f"{folder}: 2 records of 3 units, but the stage was done; restore them or run again"
    ]


def test_a_story_without_stages_is_damaged(out: Path) -> None:
    (out / "run.json").write_text('{"state": "done", "stages": [{"name": "exact"}]}')
    for act in (status.describe, status.verify):
        with pytest.raises(InputError, match=r"run\.json: is damaged, no list of stages; move it away and run"):
            act(str(out))
    (out / "run.json").write_text('{"state": "done", "stages": [], "earlier": 3}')
    with pytest.raises(InputError, match=r"run\.json: is damaged, no list of stages; move it away and run"):
        status.describe(str(out))


def test_verify_of_a_corpus_and_of_the_run_that_holds_it(out: Path) -> None:
    """A change that the manifest tells of is found by either path."""
    manifest.write_corpus(str(out / "shards"), [SHARD_SCHEMA.empty_table()])
    assert status.verify(str(out / "shards")) == []
    assert status.verify(str(out / "shards" / "manifest.json")) == []
    [shard] = (out / "shards").glob("00000-*[0-9a-f].parquet")
    shard.write_bytes(shard.read_bytes()[::-1])
    for path in (out, out / "shards"):
        assert status.verify(str(path)) == [
            f"{shard}: sha256 differs from the manifest; restore it or run the pipeline again"
        ]


def test_reading_a_run_loads_no_ray(out: Path) -> None:
    program = "import sys; from pipeline.__main__ import main; main(sys.argv[1:]); assert 'ray' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", program, "status", str(out)], check=True, stdout=subprocess.DEVNULL, timeout=60
    )
