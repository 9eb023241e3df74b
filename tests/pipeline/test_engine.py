"""The engine with toy stages on one embedded Ray: accounting, commits, resuming, crashes, two drivers.

Executions are counted by files that the work leaves in a folder, because it runs in other processes. Crashes are real: the work
sends its own process SIGKILL.
"""

import functools
import gc
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import packaging.version
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from pipeline import engine, records, status
from pipeline.commit import Result, Stage, Unit, stage_folder
from pipeline.contracts import parquet, ray_start, storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError, RunError
from pipeline.contracts.schema import Reason, rejected_rows
from pipeline.engine import EngineConfig, Run
from pipeline.records import Record
from pipeline.status import story
from tests import stunted_ray
from tests.e2e import pipelines

DIGEST = "d1" * 32
OTHER_DIGEST = "d2" * 32


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


# ---- toys


def read_numbers(rows: int, unit: Unit) -> pa.Table:
    """`rows` rows whose uid and number are their place."""
    numbers = range(rows)
    uids = pa.array([number.to_bytes(16, "big") for number in numbers], pa.binary(16))
    return pa.table({"uid": uids, "number": pa.array(numbers, pa.int64())})


def halves(table: pa.Table, unit: Unit) -> Result:
    """Keeps even numbers and rejects odd ones."""
    odd = pc.equal(pc.bit_wise_and(table["number"], 1), 1)
    return Result(table.filter(pc.invert(odd)), rejected_rows(table.filter(odd), Reason.NO_QUERY, "odd"))


def counted(folder: Path, table: pa.Table, unit: Unit) -> Result:
    (folder / f"{unit.id}-{uuid.uuid4().hex}").touch()
    return halves(table, unit)


def executions(folder: Path) -> Counter[str]:
    return Counter(entry.name.split("-")[0] for entry in folder.iterdir())


def loses_a_row(table: pa.Table, unit: Unit) -> Result:
    return Result(table.slice(1))


def invents_a_reason(table: pa.Table, unit: Unit) -> Result:
    rejected = rejected_rows(table, Reason.NO_QUERY)
    place = rejected.column_names.index("reason")
    return Result(table.slice(0, 0), rejected.set_column(place, "reason", pa.array(["bored"] * table.num_rows)))


def crashes_on(numbers: tuple[int, ...], table: pa.Table, unit: Unit) -> Result:
    if set(numbers) & set(table["number"].to_pylist()):
        os.kill(os.getpid(), signal.SIGKILL)
    return halves(table, unit)


def crashes_once(mark: Path, table: pa.Table, unit: Unit) -> Result:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return halves(table, unit)


def crashes_where_marks_are_left(marks: Path, table: pa.Table, unit: Unit) -> Result:
    """Each mark (a number of rows) is used up by one crash on so many rows."""
    for mark in sorted(marks.glob(f"{table.num_rows}-*")):
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return halves(table, unit)


def in_partitions(work: Callable[[pa.Table, Unit], Result], table: pa.Table, unit: Unit) -> Result:
    """As `candidates` does it: kept rows by partition and uid, rejected ones by reason."""
    done = work(table, unit)
    numbers = done.rows["number"].to_pylist()
    order = pa.array(sorted(range(len(numbers)), key=lambda row: (numbers[row] % 3, row)), pa.int64())
    rows = done.rows.take(order)
    partition = pa.array([number % 3 for number in rows["number"].to_pylist()], pa.int32())
    return Result(rows.add_column(0, "partition", partition), done.rejected)


def a_partition_a_row(table: pa.Table, unit: Unit) -> Result:
    return Result(table.add_column(0, "partition", table["number"].cast(pa.int32())))


def refuses(table: pa.Table, unit: Unit) -> Result:
    raise InputError("list.csv: 'x' is no number; write one")


def crashes_then_refuses(table: pa.Table, unit: Unit) -> Result:
    """On the whole unit it crashes; on a part of it the user's mistake shows."""
    if table.num_rows == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return refuses(table, unit)


def takes_its_time(table: pa.Table, unit: Unit) -> Result:
    time.sleep(1.5)  # beyond the first second, after which the driver looks up
    return halves(table, unit)


def fails(table: pa.Table, unit: Unit) -> Result:
    raise ZeroDivisionError("a bug")


def other_rows_each_time(table: pa.Table, unit: Unit) -> Result:
    noise = pa.array([uuid.uuid4().bytes for _ in range(table.num_rows)], pa.binary(16))
    return Result(table.set_column(0, "uid", noise))


def writes_another_record_first(place: str, record: bytes, table: pa.Table, unit: Unit) -> Result:
    """What a second driver's task does at the same time."""
    assert storage.put_if_absent(place, record)
    return halves(table, unit)


def big(table: pa.Table, unit: Unit) -> Result:
    rows = 200
    data = [os.urandom(100_000) for _ in range(rows)]
    return Result(pa.table({"number": pa.array(range(rows)), "image": pa.array(data, pa.binary())}))


def toy(
    work: Callable[[pa.Table, Unit], Result] = halves,
    *,
    rows: int = 10,
    digest: str = DIGEST,
    row_wise: bool = False,
    accounted: bool = True,
    partitioned: bool = False,
) -> Stage:
    read = functools.partial(read_numbers, rows)
    return Stage("toy", digest, read, work, accounted=accounted, row_wise=row_wise, partitioned=partitioned)


def units(number: int) -> list[Unit]:
    return [Unit(f"u{place}", (f"input{place}",)) for place in range(number)]


def driver(out: Path, workers: int | None = None) -> Run:
    return Run(str(out), EngineConfig(workers=workers), {}, "0" * 64)


def run(out: Path, stage: Stage, wanted: list[Unit], workers: int | None = None) -> list[Record]:
    with driver(out, workers) as found:
        return found.stage(stage, wanted)


def folder_of(out: Path, stage: Stage) -> Path:
    return Path(stage_folder(str(out), stage))


# ---- what is seen while it runs


def test_a_long_unit_shows_in_the_log_and_a_resumed_one_is_not_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.contracts.cli._PLAIN_INTERVAL_S", 0.5)
    stage = toy(takes_its_time)
    run(tmp_path, stage, units(1))
    assert capsys.readouterr().err.startswith("toy: 0 of 1 units in ")
    run(tmp_path, stage, units(1))
    shown = capsys.readouterr().err
    assert shown.startswith("toy: 1 of 1 units, 1 of them before in ")
    assert shown.endswith(" (0.0 units/s), 10 in, 5 out, 5 rejected\n")


# ---- accounting


def test_a_unit_is_committed_with_all_its_rows_accounted_for(tmp_path: Path) -> None:
    stage = toy()
    [record] = run(tmp_path, stage, units(1))
    folder = folder_of(tmp_path, stage)
    assert (record.rows_in, record.rows_out, record.rejected) == (10, 5, {"no_query": 5})
    assert parquet.read(str(folder / record.output.name))["number"].to_pylist() == [0, 2, 4, 6, 8]
    assert record.rejected_file is not None
    assert parquet.read(str(folder / record.rejected_file.name))["detail"].to_pylist() == ["odd"] * 5
    assert sorted(path.name for path in folder.iterdir()) == sorted(["u0.json", *(f.name for f in record.files)])


def test_a_stage_that_loses_a_row_commits_nothing(tmp_path: Path) -> None:
    stage = toy(loses_a_row)
    with pytest.raises(RunError, match=r"toy: unit u0: 10 rows in, 9 out and 0 rejected do not add up"):
        run(tmp_path, stage, units(1))
    assert list(folder_of(tmp_path, stage).iterdir()) == []
    told = story(str(tmp_path))
    assert (told["state"], told["exit_code"]) == ("failed", 1)
    assert "do not add up" in str(told["error"])


def test_steps_whose_rows_are_no_pairs_need_not_add_up(tmp_path: Path) -> None:
    [record] = run(tmp_path, toy(loses_a_row, accounted=False), units(1))
    assert (record.rows_in, record.rows_out, record.accounted) == (10, 9, False)


def test_a_reason_outside_the_closed_list_is_refused(tmp_path: Path) -> None:
    stage = toy(invents_a_reason)
    with pytest.raises(RunError, match=r"\['bored'\] are not in the closed list"):
        run(tmp_path, stage, units(1))
    assert list(folder_of(tmp_path, stage).iterdir()) == []


def test_no_units_is_a_stage_too(tmp_path: Path) -> None:
    assert run(tmp_path, toy(), []) == []


# ---- resuming


def marks(tmp_path: Path) -> Path:
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


def test_a_units_seconds_are_none_of_the_clock_which_may_be_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, whose clock can be set without that of the machine."""
    real = time.time

    def sets_the_clock_back(table: pa.Table, unit: Unit) -> Result:
        monkeypatch.setattr(time, "time", lambda: real() - 7200)
        return halves(table, unit)

    tmp_path.joinpath("out").mkdir()
    run_unit: Any = engine._run_unit
    record, _ = run_unit._function(toy(sets_the_clock_back), str(tmp_path / "out"), units(1)[0], {})
    assert 0 <= record.seconds < 60
    assert record.started == pytest.approx(time.time(), abs=60)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    seen, out = marks(tmp_path), tmp_path / "out"
    stage = toy(functools.partial(counted, seen))
    first = run(out, stage, units(2))
    assert run(out, stage, units(4))[:2] == first
    assert executions(seen) == {"u0": 1, "u1": 1, "u2": 1, "u3": 1}


def test_a_unit_whose_input_changed_is_refused_not_mixed_up(tmp_path: Path) -> None:
    """Stage digests cover the roots of inputs, so this cannot happen to a pipeline; the record is believed, not overwritten."""
    stage = toy()
    run(tmp_path, stage, [Unit("u0", ("stage/one/before.parquet",))])
    with pytest.raises(RunError, match=r"u0\.json: was made of other input, or .* move this record away and run again"):
        run(tmp_path, stage, [Unit("u0", ("stage/one/after.parquet",))])


def test_a_unit_with_other_parameters_is_refused(tmp_path: Path) -> None:
    run(tmp_path, toy(), [Unit("u0", params={"start": 0})])
    with pytest.raises(RunError, match="was made of other input"):
        run(tmp_path, toy(), [Unit("u0", params={"start": 1})])


def test_the_same_input_from_another_folder_is_done(tmp_path: Path) -> None:
    """A setting of the stage before that changed none of its rows: the same names, which have the content's hash, lie elsewhere."""
    seen, out = marks(tmp_path), tmp_path / "out"
    stage = toy(functools.partial(counted, seen))
    first = run(out, stage, [Unit("u0", ("stage/one/u0-0123.parquet",))])
    assert run(out, stage, [Unit("u0", ("stage/two/u0-0123.parquet",))]) == first
    assert executions(seen) == {"u0": 1}


def test_a_record_of_the_version_before_is_done_whatever_folder_it_read(tmp_path: Path) -> None:
    seen, out = marks(tmp_path), tmp_path / "out"
    stage = toy(functools.partial(counted, seen))
    run(out, stage, units(1))
    place = folder_of(out, stage) / "u0.json"
    old = json.loads(place.read_text()) | {"version": 2, "input_digest": "of names with folders"}
    place.write_text(json.dumps(old))
    [record] = run(out, stage, units(1))
    assert (record.version, executions(seen)) == (2, {"u0": 1})
    for version in (1, 4):
        place.write_text(json.dumps(old | {"version": version}))
        with pytest.raises(RunError, match="not a commit record of this version"):
            run(out, stage, units(1))


@pytest.mark.parametrize("damage", ["missing", "truncated", "grown"])
def test_a_damaged_output_is_made_again(tmp_path: Path, damage: str) -> None:
    seen, out = marks(tmp_path), tmp_path / "out"
    stage = toy(functools.partial(counted, seen))
    first = run(out, stage, units(3))
    file = folder_of(out, stage) / first[1].output.name
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[:-1] if damage == "truncated" else whole + b"x")
    assert run(out, stage, units(3)) == first
    assert executions(seen) == {"u0": 1, "u1": 2, "u2": 1}
    assert file.read_bytes() == whole


def test_a_lost_output_that_cannot_be_made_again_is_refused(tmp_path: Path) -> None:
    """A crawl fetches other bytes the second time: the record that names the lost ones stands, and the user decides."""
    stage = toy(other_rows_each_time)
    [record] = run(tmp_path, stage, units(1))
    (folder_of(tmp_path, stage) / record.output.name).unlink()
    with pytest.raises(
        RunError, match=r"u0\.json: .* names a file that is missing or has another size; move this record away"
    ):
        run(tmp_path, stage, units(1))


def test_another_digest_is_another_folder_and_nothing_is_deleted(tmp_path: Path) -> None:
    seen, out = marks(tmp_path), tmp_path / "out"
    before, after = (toy(functools.partial(counted, seen), digest=digest) for digest in (DIGEST, OTHER_DIGEST))
    run(out, before, units(2))
    there = {path: path.read_bytes() for path in folder_of(out, before).iterdir()}
    run(out, after, units(2))
    assert executions(seen) == {"u0": 2, "u1": 2}
    assert {path: path.read_bytes() for path in folder_of(out, before).iterdir()} == there
    assert folder_of(out, after) != folder_of(out, before)


def test_leftovers_of_a_killed_driver_are_not_data(tmp_path: Path) -> None:
    stage = toy()
    folder = folder_of(tmp_path, stage)
    folder.mkdir(parents=True)
    half_written = folder / ".tmp-0123456789ab-u0.parquet"
    half_written.write_bytes(b"PAR1 and then the power went")
    half_record = folder / ".tmp-0123456789ab-u0.json"
    half_record.write_bytes(b'{"version"')
    renamed = folder / "u0-000000000000.parquet"
    renamed.write_bytes(b"no record names me")
    [record] = run(tmp_path, stage, units(1))
    assert record.output.name != renamed.name
    assert half_written.exists()
    assert half_record.exists()
    assert renamed.read_bytes() == b"no record names me"
    assert run(tmp_path, stage, units(1)) == [record]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    stage = toy()
    run(tmp_path, stage, units(1))
    place = folder_of(tmp_path, stage) / "u0.json"
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(RunError, match=r"u0\.json: not a commit record of this version; move it away and run again"):
        run(tmp_path, stage, units(1))


def test_one_worker_or_three_give_the_same_records(tmp_path: Path) -> None:
    def essence(record: Record) -> dict[str, object]:
        return record.model_dump(exclude={"owner", "started", "seconds"})

    wanted = units(7)
    one, three = (run(tmp_path / str(workers), toy(), wanted, workers) for workers in (1, 3))
    assert [essence(record) for record in one] == [essence(record) for record in three]
    assert [record.unit for record in three] == [unit.id for unit in wanted]


# ---- crashes


def test_the_row_that_ends_its_worker_is_found_and_the_others_are_kept(tmp_path: Path) -> None:
    """Of a few rows, since each crash costs the start of a worker."""
    stage = toy(functools.partial(crashes_on, (2,)), rows=5, row_wise=True)
    [record] = run(tmp_path, stage, units(1))
    assert (record.rows_in, record.rows_out) == (5, 2)
    assert record.rejected == {"decoder_crashed": 1, "no_query": 2}
    folder = folder_of(tmp_path, stage)
    assert parquet.read(str(folder / record.output.name))["number"].to_pylist() == [0, 4]
    assert record.rejected_file is not None
    rejected = parquet.read(str(folder / record.rejected_file.name)).to_pylist()
    [lost] = [row for row in rejected if row["reason"] == "decoder_crashed"]
    assert lost["uid"] == (2).to_bytes(16, "big")


@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.prove)])
def test_a_unit_of_which_every_row_ends_its_worker(tmp_path: Path, rows: int) -> None:
    stage = toy(functools.partial(crashes_on, (0, 1)), rows=rows, row_wise=True)
    [record] = run(tmp_path, stage, units(1))
    assert record.rejected == {"decoder_crashed": rows}
    assert parquet.read(str(folder_of(tmp_path, stage) / record.output.name)).num_rows == 0


def test_a_worker_that_is_lost_once_is_no_verdict(tmp_path: Path) -> None:
    stage = toy(functools.partial(crashes_once, tmp_path / "mark"), row_wise=True)
    [record] = run(tmp_path / "out", stage, units(1))
    assert record.rejected == {"no_query": 5}


@pytest.mark.parametrize(
    "crashes",
    [
        ["11-a", "11-b", "11-c", "5-a"],
        pytest.param(["11-a", "11-b"], marks=pytest.mark.prove),
        pytest.param(["11-a", "11-b", "11-c", "5-a", "2-a", "1-a"], marks=pytest.mark.prove),
    ],
)
def test_crashes_without_a_guilty_row_leave_no_trace(tmp_path: Path, crashes: list[str]) -> None:
    """The whole unit is lost twice, perhaps a half and a single row once: every file has the bytes of an undisturbed run."""
    seen = marks(tmp_path)
    work = functools.partial(in_partitions, functools.partial(crashes_where_marks_are_left, seen))
    stage = toy(work, rows=11, row_wise=True, partitioned=True)
    [undisturbed] = run(tmp_path / "one", stage, units(1))
    for mark in crashes:
        (seen / mark).touch()
    [cut] = run(tmp_path / "other", stage, units(1))
    assert list(seen.iterdir()) == []
    assert [file.sha256 for file in cut.files] == [file.sha256 for file in undisturbed.files]
    assert (cut.rows_out, cut.rejected) == (6, {"no_query": 5})


def test_only_a_worker_that_ended_twice_convicts() -> None:
    losses = engine._Losses()
    crash, lost = ray.exceptions.WorkerCrashedError(), ray.exceptions.NodeDiedError("gone")  # type: ignore[no-untyped-call]
    assert [losses.convicted("toy", error) for error in (crash, lost, lost, lost)] == [False] * 4
    assert losses.convicted("toy", crash)
    with pytest.raises(RunError, match=r"^toy was lost again and again \(NodeDiedError\); see to the cluster's nodes"):
        losses.convicted("toy", lost)


def test_a_stage_that_cannot_be_cut_fails_with_a_sentence(tmp_path: Path) -> None:
    stage = toy(functools.partial(crashes_on, (3,)))
    with pytest.raises(RunError, match=r"toy: unit u0 ended its worker twice \(WorkerCrashedError\); give the workers"):
        run(tmp_path, stage, units(1))
    assert not (folder_of(tmp_path, stage) / "u0.json").exists()


def test_a_mistake_found_while_a_unit_is_cut_reaches_the_user_as_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^list\.csv: 'x' is no number; write one$") as caught:
        run(tmp_path, toy(crashes_then_refuses, rows=4, row_wise=True), units(1))
    assert type(caught.value) is InputError


def test_more_tasks_wait_than_there_are_cpus_so_that_an_autoscaler_sees_them(tmp_path: Path) -> None:
    """engine.workers is a promise and has none that wait."""
    assert driver(tmp_path)._limit() == 3 + 2
    assert driver(tmp_path, workers=1)._limit() == 1


# ---- errors


def test_the_users_mistake_comes_out_of_a_worker_as_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^list\.csv: 'x' is no number; write one$") as caught:
        run(tmp_path, toy(refuses), units(2))
    assert type(caught.value) is InputError
    assert (caught.value.exit_code, story(str(tmp_path))["exit_code"]) == (2, 2)


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="in fails"):
        run(tmp_path, toy(fails), units(1))


def refuses_late(mark: Path, table: pa.Table, unit: Unit) -> Result:
    """The first unit at once, the other when it is told to: when the driver has given up."""
    if unit.id != "u0":
        until = time.monotonic() + 60
        while not mark.with_name("go").exists() and time.monotonic() < until:
            time.sleep(0.05)
        mark.touch()
    return refuses(table, unit)


def test_units_that_fail_beside_the_first_do_not_add_their_tracebacks(tmp_path: Path) -> None:
    heard = io.StringIO()
    ears = logging.StreamHandler(heard)
    logging.getLogger("ray").addHandler(ears)
    mark = tmp_path / "mark"
    try:
        with pytest.raises(InputError, match="'x' is no number"):
            run(tmp_path / "out", toy(functools.partial(refuses_late, mark)), units(2))
        assert not mark.exists()
        mark.with_name("go").touch()
        until = time.monotonic() + 60
        while not mark.exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)  # until the driver has the answer, too
        gc.collect()  # the error held the references by its traceback
    finally:
        logging.getLogger("ray").removeHandler(ears)
    assert heard.getvalue() == ""


def refuse_two(item: int) -> int:
    if item == 2:
        raise InputError("2: too much")
    return item * 10


def test_map_keeps_order_and_errors(tmp_path: Path) -> None:
    with driver(tmp_path, workers=2) as found:
        assert found.map(refuse_two, [5, 1, 4, 3, 0]) == [50, 10, 40, 30, 0]
        with pytest.raises(InputError, match="2: too much"):
            found.map(refuse_two, [1, 2, 3])


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), driver(tmp_path):
        raise KeyboardInterrupt
    assert (story(str(tmp_path))["state"], story(str(tmp_path))["exit_code"]) == ("failed", 130)


TOLD_TO_END = "lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)"


@pytest.mark.parametrize(
    "when",
    [
        pytest.param(f"from ray._private import node; node.Node = {TOLD_TO_END}", id="before Ray's first process"),
        pytest.param(f"from ray._private import worker; worker._post_init_hooks += [{TOLD_TO_END}]", id="with Ray up"),
        pytest.param("", id="in the run"),
    ],
)
def test_sigterm_interrupts_a_driver_like_ctrl_c(tmp_path: Path, when: str) -> None:
    """Ray has handlers of its own from the moment on when it starts; its last one aborts a process that takes 3 s more to end."""
    program = (
        f"import os, signal; {when}\n"
        "import sys, time; from pipeline.contracts.cli import run_cli; from pipeline.engine import EngineConfig, Run\n"
        "def main(argv):\n try:\n  with Run(argv[0], EngineConfig(), {}, '0' * 64):\n   print('in', flush=True)\n   time.sleep(300)\n"
        " finally:\n  time.sleep(4)\n"
        "run_cli(main)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if not when:
            assert process.stdout.readline() == "in\n"
            process.terminate()
        try:
            out, said = process.communicate(timeout=200)
        finally:
            process.kill()
        assert out == ""
    assert process.returncode == 130
    assert [line for line in said.splitlines() if line.startswith("error: ")] == [
        "error: interrupted; the same command again resumes"
    ]
    assert "Traceback" not in said
    assert (story(str(tmp_path))["state"], story(str(tmp_path))["exit_code"]) == ("failed", 130)
    last = status.describe(str(tmp_path)).splitlines()[-1]
    assert last == "state: failed (interrupted; the same command again resumes)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_nothing_in_a_fork_of_the_driver_while_ray_starts(number: signal.Signals) -> None:
    """Ray's processes are forks until they become their programs, and hear what the driver's group is told."""
    script = f"""
import os, signal, subprocess, sys
import ray
from pipeline.contracts import ray_start

def start(**options):
    fork = subprocess.Popen([sys.executable, "-c", ""], preexec_fn=lambda: os.kill(os.getpid(), {int(number)}))
    print("fork:", fork.wait(), flush=True)
    os.kill(os.getpid(), {int(number)})

ray.init = start
for one in (signal.SIGINT, signal.SIGTERM):  # a shell's & would have made it deaf
    signal.signal(one, signal.default_int_handler)
try:
    ray_start.connect(None, "nowhere", dashboard=False)
except KeyboardInterrupt:
    print("driver: interrupted")
print(all(signal.getsignal(one) is signal.default_int_handler for one in (signal.SIGINT, signal.SIGTERM)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("fork: 0\ndriver: interrupted\nTrue\n", "")


def one_sentence_of_a_run_without_ray(
    out: Path, address: str, env: Mapping[str, str] | None = None, *, code: int = 2, before: str = ""
) -> str:
    """What a job says whose Ray does not start, in a process of its own, because Ray is up in this one; `before` runs there first."""
    program = (
        f"{before}\nimport sys; from pipeline.contracts.cli import run_cli; from pipeline.engine import EngineConfig, Run\n"
        "def main(argv):\n with Run(argv[0], EngineConfig(address=argv[1] or None), {}, '0' * 64): pass\n"
        "run_cli(main)"
    )
    command = [sys.executable, "-c", program, str(out), address]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, **(env or {})})
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert (ended.returncode, len(errors)) == (code, 1), ended.stderr
    assert "Traceback" not in ended.stderr
    assert (story(str(out))["state"], story(str(out))["exit_code"]) == ("failed", code)
    return errors[0]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nonsense"])
def test_a_wrong_cluster_address_is_one_sentence(tmp_path: Path, unused_port: int, address: str) -> None:
    address = address.format(port=unused_port)
    said = one_sentence_of_a_run_without_ray(tmp_path, address)
    assert f"engine.address: no Ray cluster answers at '{address}'" in said


NO_TOKEN = pytest.mark.skipif(
    packaging.version.parse(ray.__version__) < packaging.version.Version("2.59"),
    reason="before 2.59 Ray keeps no token in a home and needs none",
)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", pytest.param("HOME", marks=NO_TOKEN)])
def test_a_machine_without_a_place_for_ray_is_one_sentence(tmp_path: Path, variable: str) -> None:
    """A container for a user without a home, or whose files are read-only."""
    said = one_sentence_of_a_run_without_ray(tmp_path, "", {variable: f"{os.devnull}/no"})
    assert said.startswith("error: Ray cannot start on this machine ([Errno 20] Not a directory: '/dev/null")
    assert variable in said.partition("; ")[2]


def test_a_machine_on_which_rays_node_does_not_come_up_is_one_sentence(tmp_path: Path) -> None:
    with pipelines.ray_folder() as folder:
        before = "from tests.stunted_ray import stunt; stunt()"
        env = stunted_ray.IMPATIENT | {"RAY_TMPDIR": str(folder)}
        said = one_sentence_of_a_run_without_ray(tmp_path, "", env, code=1, before=before)
    assert said.startswith("error: Ray does not come up on this machine (The current node timed out during startup. ")
    assert f"see '{folder}/ray/session_latest/logs' (raylet.err first)" in said


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (Exception("no node"), RunError),
        (RuntimeError("Failed to start GCS."), RunError),
        (TimeoutError("no socket"), RunError),
        (PermissionError(13, "no"), InputError),
        (ValueError("ours"), ValueError),
        (KeyError("ours"), KeyError),
    ],
)
def test_what_is_no_word_of_rays_stays_a_bug(
    error: Exception, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(raised) as caught:
        ray_start.connect(None, "nowhere", dashboard=False)
    assert type(caught.value) is raised


def test_ray_is_joined_from_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the main one may say what answers a signal."""
    joined: list[dict[str, object]] = []
    monkeypatch.setattr(ray, "init", lambda **options: joined.append(options))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ray_start.connect, None, "nowhere", dashboard=False).result()
    assert [options["address"] for options in joined] == ["local"]


def test_what_ended_a_run_is_said_where_run_json_cannot_tell_it(tmp_path: Path) -> None:
    def fail() -> None:
        with driver(tmp_path / "out"):
            shutil.rmtree(tmp_path / "out")
            (tmp_path / "out").touch()
            raise RunError("the first trouble")

    with pytest.raises(RunError, match="the first trouble"):
        fail()


# ---- two drivers


@pytest.fixture
def living() -> Iterator[dict[str, Json]]:
    """An owner that is alive: a sleeping process."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        yield {**records.this_process(), "pid": process.pid, "started": records.start_ticks(process.pid)}
    finally:
        process.kill()
        process.wait()


def dead() -> dict[str, Json]:
    """An owner that is gone."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    owner = {**records.this_process(), "pid": process.pid, "started": records.start_ticks(process.pid)}
    process.kill()
    process.wait()
    return owner


def test_a_killed_driver_that_its_parent_has_not_asked_for_is_dead(tmp_path: Path) -> None:
    """As under a container's first process that reaps nobody: a zombie has its entry in /proc, its start and all."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    owner = {**records.this_process(), "pid": process.pid, "started": records.start_ticks(process.pid)}
    assert not records.has_died(owner)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not reaped
    try:
        assert Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        assert records.has_died(owner)
        say(tmp_path, "running", owner)
        assert len(run(tmp_path, toy(), units(1))) == 1
    finally:
        process.wait()


def say(out: Path, state: str, owner: dict[str, Json]) -> None:
    """Leave the run.json of another driver."""
    out.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(str(out / "run.json"), engine._json({"state": state, "owner": owner}))


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path, living: dict[str, Json]) -> None:
    say(tmp_path, "running", living)
    with pytest.raises(RunError, match=rf"run\.json: process {living['pid']} is writing to this output"):
        run(tmp_path, toy(), units(1))
    assert story(str(tmp_path))["owner"] == living, "the refused driver must not touch the other's run.json"


@pytest.mark.parametrize("damage", ["", '{"state": "runn', "[1]"])
def test_a_damaged_story_is_the_users_to_mend(tmp_path: Path, damage: str) -> None:
    (tmp_path / "run.json").write_text(damage)
    for act in (lambda: run(tmp_path, toy(), units(1)), lambda: story(str(tmp_path))):
        with pytest.raises(InputError, match=r"run\.json: is damaged, no JSON object; move it away and run the"):
            act()
    assert (tmp_path / "run.json").read_text() == damage


def test_a_finished_or_dead_driver_is_no_obstacle(tmp_path: Path, living: dict[str, Json]) -> None:
    say(tmp_path / "finished", "done", living)
    say(tmp_path / "dead", "running", dead())
    later = {**living, "started": "1"}  # the number of the dead one was given to another process since
    say(tmp_path / "reused", "running", later)
    for name in ("finished", "dead", "reused"):
        assert len(run(tmp_path / name, toy(), units(1))) == 1


def other_record(tmp_path: Path, owner: dict[str, Json]) -> bytes:
    """The record that another driver would write for the same unit."""
    [record] = run(tmp_path / "elsewhere", toy(), units(1))
    return record.model_copy(update={"owner": owner}).model_dump_json().encode()


def test_a_record_of_a_living_other_driver_stops_this_one(tmp_path: Path, living: dict[str, Json]) -> None:
    record, out = other_record(tmp_path, living), tmp_path / "out"
    place = str(folder_of(out, toy()) / "u0.json")
    work = functools.partial(writes_another_record_first, place, record)
    with pytest.raises(RunError, match=rf"another driver is writing to this output: process {living['pid']} on "):
        run(out, toy(work), units(1))
    assert Path(place).read_bytes() == record


def test_a_record_of_another_machines_driver_stops_this_one(tmp_path: Path) -> None:
    record, out = other_record(tmp_path, {**dead(), "host": "elsewhere"}), tmp_path / "out"
    place = str(folder_of(out, toy()) / "u0.json")
    with pytest.raises(RunError, match="on 'elsewhere'"):
        run(out, toy(functools.partial(writes_another_record_first, place, record)), units(1))


def test_a_late_record_of_a_dead_driver_stands(tmp_path: Path) -> None:
    owner = dead()
    record, out = other_record(tmp_path, owner), tmp_path / "out"
    place = str(folder_of(out, toy()) / "u0.json")
    [accepted] = run(out, toy(functools.partial(writes_another_record_first, place, record)), units(1))
    assert accepted.owner == owner


# ---- the story of earlier runs


def named(name: str, digest: str = DIGEST) -> Stage:
    return Stage(name, digest, functools.partial(read_numbers, 4), halves)


def tell(out: Path, *stages: Stage, config_digest: str = "0" * 64) -> None:
    """A run of these stages, of two units each."""
    with Run(str(out), EngineConfig(), {}, config_digest) as found:
        for stage in stages:
            found.stage(stage, units(2))


def told(out: Path) -> list[tuple[str, bool]]:
    """The stages that the story tells of, each with whether it is of an earlier run; all of their records are there."""
    found = status.stages(str(out))
    assert all(len(stage.records) == stage.units == 2 for stage in found)
    return [(stage.name, stage.earlier) for stage in found]


def test_stages_that_a_run_does_not_reach_stay_in_the_story(tmp_path: Path) -> None:
    a, b, c = (named(name) for name in ("a", "b", "c"))
    tell(tmp_path, a, b, c)
    tell(tmp_path, a)
    assert told(tmp_path) == [("a", False), ("b", True), ("c", True)]
    with pytest.raises(KeyboardInterrupt), driver(tmp_path):
        raise KeyboardInterrupt
    assert told(tmp_path) == [("a", True), ("b", True), ("c", True)]
    tell(tmp_path, a, named("new"))
    assert told(tmp_path) == [("a", False), ("new", False), ("b", True), ("c", True)]
    assert status.verify(str(tmp_path)) == []
    lost = next(folder_of(tmp_path, c).glob("*.json"))
    lost.unlink()
    assert status.verify(str(tmp_path)) == [
        f"{lost.parent}: 1 records of 2 units, but the stage was done; restore them or run again"
    ]
    tell(tmp_path, a, b, c)
    assert told(tmp_path) == [("a", False), ("b", False), ("c", False)]


def test_what_came_of_other_input_goes_from_the_story(tmp_path: Path) -> None:
    """`b` has another digest, so that `c`, of the run before, is no longer what comes of it. Two stages may have one name."""
    tell(tmp_path, named("a"), named("a", OTHER_DIGEST), named("b"), named("c"))
    tell(tmp_path, named("a"))
    assert told(tmp_path) == [("a", False), ("a", True), ("b", True), ("c", True)]
    tell(tmp_path, named("a"), named("a", OTHER_DIGEST), named("b", OTHER_DIGEST))
    assert told(tmp_path) == [("a", False), ("a", False), ("b", False)]


def test_a_run_with_another_configuration_begins_a_story_of_its_own(tmp_path: Path) -> None:
    tell(tmp_path, named("a"), named("b"))
    tell(tmp_path, named("a"), config_digest="1" * 64)
    assert told(tmp_path) == [("a", False)]


def test_a_killed_driver_is_told_from_one_that_runs(tmp_path: Path) -> None:
    """A real SIGKILL, while it waits for a cluster that takes the connection and says nothing."""
    tell(tmp_path, named("a"), named("b"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        program = (
            "import sys; from pipeline.engine import EngineConfig, Run\n"
            "with Run(sys.argv[1], EngineConfig(address=sys.argv[2]), {}, '0' * 64): pass"
        )
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), address], stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 60
            while story(str(tmp_path))["state"] != "running" and time.monotonic() < until:
                time.sleep(0.05)
            assert status.describe(str(tmp_path)).splitlines()[-1] == "state: running"
        finally:
            process.kill()
            process.wait()
    assert story(str(tmp_path))["state"] == "running"
    last = status.describe(str(tmp_path)).splitlines()[-1]
    assert last == "state: ended without a word (killed); the same command again resumes"
    assert told(tmp_path) == [("a", True), ("b", True)]
    tell(tmp_path, named("a"))
    assert told(tmp_path) == [("a", False), ("b", True)]
    assert status.describe(str(tmp_path)).splitlines()[-1] == "state: done"


# ---- memory


def test_rows_do_not_pass_through_the_driver(tmp_path: Path) -> None:
    """Five units of 20 MB each; the driver's peak grows by less than two of them."""
    run(tmp_path / "warm", toy(), units(1))
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets the peak to what is resident now
    before = peak_bytes()
    records = run(tmp_path / "big", toy(big, accounted=False), units(5))
    assert sum(record.output.bytes for record in records) > 100e6
    assert peak_bytes() - before < 40e6


def test_what_a_driver_holds_of_a_unit_does_not_grow_with_the_partitions(tmp_path: Path) -> None:
    """Each unit of a stage that is cut for thousands of others has a row group for each of them."""
    told = []
    for rows in (2, 5_000):
        [record] = run(tmp_path / str(rows), toy(a_partition_a_row, rows=rows, partitioned=True), units(1))
        [path] = (tmp_path / str(rows)).glob("toy/*/*.parquet")
        assert pq.read_metadata(path).num_row_groups == rows
        told.append(len(record.model_dump_json()))
    assert told[1] < told[0] + 50


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
