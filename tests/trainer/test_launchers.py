"""The run is the same whoever starts its processes: DeepSpeed's launcher, Slurm, Kubernetes, Ray Train; and it may change hands.

Slurm's script runs as it is, beside programs that answer as `srun` and `scontrol` do and start the tasks on this machine. The shell script
of the Kubernetes job runs as it is, once for each pod, with the environment of a pod.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.contracts.errors import InputError
from tests.conftest import ROOT
from tests.e2e import pipelines
from tests.ports import free_port
from tests.trainer.launching import SMOKE, Finished, errors_of, launch, wait_until
from trainer import checkpoint, launch_ray

pytestmark = pytest.mark.timeout(900)

TOLD_TO_END = 143
ENDLESS = {"optim.steps": 100_000, "run.save_every": 100_000}
BINARIES = str(Path(sys.executable).parent)
Overrides = Mapping[str, object]


def environment(**more: str) -> dict[str, str]:
    path = f"{BINARIES}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **more}


def arguments(overrides: Overrides) -> list[str]:
    return ["--config", SMOKE, *(f"{key}={value}" for key, value in overrides.items())]


@dataclasses.dataclass
class Command:
    """A started command of several processes, in a session of its own, with its output in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, seconds: float = 280.0) -> Finished:
        return Finished(self.process.wait(seconds), self.log.read_text())


@contextlib.contextmanager
def commands(*given: tuple[list[str], dict[str, str]], log: Path) -> Iterator[list[Command]]:
    """The commands, all at once; what is left of them at the end is killed."""
    started = []
    try:
        for number, (command, env) in enumerate(given):
            path = log.with_name(f"{log.name}.{number}")
            started.append(pipelines.start(command, path, env))
        yield [Command(one.process, one.log) for one in started]
    finally:
        for one in started:
            one.end()


# ---- Slurm

SRUN = """
    import contextlib, os, signal, subprocess, sys, time
    words, flags = sys.argv[1:], []
    while words[0].startswith("--"):
        flags.append(words.pop(0))
    count = int(os.environ["SLURM_NTASKS"])
    tasks = [
        subprocess.Popen(words, env={**os.environ, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
        for rank in range(count)
    ]
    with open(os.environ["SLURM_NOTES"] + "/tasks", "w") as notes:
        print(*(task.pid for task in tasks), file=notes)
    # As srun's launch.c: the first bad exit ends the step (here without KillWait), and a signal counts for more than any code.
    while None in [task.poll() for task in tasks]:
        if "--kill-on-bad-exit=1" in flags and any(task.poll() for task in tasks):
            for task in tasks:
                with contextlib.suppress(OSError):
                    for child in open(f"/proc/{task.pid}/task/{task.pid}/children").read().split():
                        os.kill(int(child), signal.SIGKILL)
                task.kill()
        time.sleep(0.002)
    codes = [task.wait() for task in tasks]
    sys.exit(128 - min(codes) if min(codes) < 0 else max(codes))
"""
SCONTROL = """
    import os, sys
    if sys.argv[1:3] == ["show", "hostnames"]:
        print("127.0.0.1", *(["elsewhere"] if sys.argv[3] == "127.0.0.1,elsewhere" else []), sep="\\n")
    else:
        with open(os.environ["SLURM_NOTES"] + "/scontrol", "a") as notes:
            print(*sys.argv[1:], file=notes)
"""


class Slurm:
    """A job of Slurm's on this machine."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.folder = folder
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            program = folder / "bin" / name
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
            program.chmod(0o755)
        self.environment = environment(
            SLURM_JOB_ID=str(free_job()),
            SLURM_JOB_NODELIST="127.0.0.1,elsewhere",
            SLURM_NTASKS=str(count),
            SLURM_CPUS_PER_TASK="1",
            SLURM_NOTES=str(folder),
        )
        self.environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{self.environment['PATH']}"

    def command(self, overrides: Overrides) -> tuple[list[str], dict[str, str]]:
        return ["bash", "infra/slurm/trainer.sbatch", *arguments(overrides)], self.environment

    def signal(self, number: int) -> None:
        """What `--signal` does: to the processes of the step, not to the script."""
        for task in (self.folder / "tasks").read_text().split():
            os.kill(int(task), number)

    def asked(self) -> list[str]:
        notes = self.folder / "scontrol"
        return notes.read_text().splitlines() if notes.exists() else []


def free_job() -> int:
    """The number of a job whose port, which follows from it, is free."""
    while True:
        number = random.SystemRandom().randrange(10_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", 20_000 + number))
            return number


def under_slurm(overrides: Overrides, folder: Path) -> Finished:
    folder.mkdir(parents=True, exist_ok=True)
    with commands(Slurm(folder).command(overrides), log=folder / "log") as (job,):
        return job.wait()


@pytest.mark.prove
def test_a_slurm_job_whose_time_is_over_saves_and_is_queued_again(short_run: dict[str, object], tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = short_run | ENDLESS | {"run.dir": run}
    slurm = Slurm(tmp_path)
    with commands(slurm.command(overrides), log=tmp_path / "log") as (job,):
        wait_until(lambda: steps_done(run) >= 2)
        slurm.signal(signal.SIGTERM)
        ended = job.wait(60)
    assert ended.code == TOLD_TO_END, ended.output
    assert slurm.asked() == [f"requeue {slurm.environment['SLURM_JOB_ID']}"]
    step = newest_step(run)
    assert steps_done(run) == step

    with commands(slurm.command(overrides | {"run.stop_after": step + 1}), log=tmp_path / "log-again") as (job,):
        ended = job.wait()
    assert ended.code == 0, ended.output
    assert f"2 processes x 4 pairs = 8, steps {step + 1} to {step + 1}" in ended.output
    assert len(slurm.asked()) == 1, "a run that has come to its end is not queued again"


# ---- Kubernetes


def job() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "infra/k8s/trainer-job.yaml").read_text())
    return next(document for document in documents if document["kind"] == "Job")


def pods(nodes: int, gpus: int, overrides: Overrides) -> list[tuple[list[str], dict[str, str]]]:
    """What each pod of the job starts, with its environment; only the size of the run, its place and its arguments are a test's."""
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert given.keys() == {"NODES", "GPUS", "MASTER_ADDR", "MASTER_PORT"}
    given |= {"NODES": str(nodes), "GPUS": str(gpus), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [*container["command"], *arguments(overrides)]
    return [(command, environment(**given, JOB_COMPLETION_INDEX=str(index))) for index in range(nodes)]


def under_kubernetes(overrides: Overrides, folder: Path) -> Finished:
    folder.mkdir(parents=True, exist_ok=True)
    with commands(*pods(2, 1, overrides), log=folder / "log") as started:
        ended = [pod.wait() for pod in started]
    return Finished(max(pod.code for pod in ended), "".join(pod.output for pod in ended))


def decision(code: int, *, disrupted: bool = False) -> str:
    """What the job does about a pod that ended with `code`: the first rule that fits decides (Kubernetes, "Pod failure policy")."""
    if code == 0:
        return "Succeeded"
    for rule in job()["spec"]["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes", {})
        assert codes.get("operator", "In") == "In"
        conditions = {condition["type"] for condition in rule.get("onPodConditions", [])}
        if code in codes.get("values", []) or (disrupted and "DisruptionTarget" in conditions):
            return str(rule["action"])
    return "Count"


def test_the_kubernetes_job_starts_again_what_starting_again_helps() -> None:
    assert decision(TOLD_TO_END) == "Ignore", "saved: again, and not counted"
    assert decision(128 + signal.SIGKILL, disrupted=True) == "Ignore", "a lost node is not counted"
    assert decision(1) == "Count", "another process was lost: again, and counted"
    assert decision(128 + signal.SIGKILL) == "Count"
    assert decision(2) == "FailJob", "wrong input stays wrong"
    spec = job()["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "a pod failure policy needs it"
    (container,) = pod["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert int(given["NODES"]) == spec["completions"]
    assert given["GPUS"] == container["resources"]["limits"]["nvidia.com/gpu"]
    # Node 0's name in DNS is JOB-0.SUBDOMAIN, where the subdomain is a headless service that selects the pods.
    service = next(
        document
        for document in yaml.safe_load_all((ROOT / "infra/k8s/trainer-job.yaml").read_text())
        if document["kind"] == "Service"
    )
    name = job()["metadata"]["name"]
    assert given["MASTER_ADDR"] == f"{name}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    # Who runs is who the image has: not root.
    image = (ROOT / "infra/docker/trainer.Dockerfile").read_text()
    assert f"\nUSER {pod['securityContext']['runAsUser']}\n" in image
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.prove
def test_a_drained_pod_saves_the_run_and_the_job_goes_on(short_run: dict[str, object], tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = short_run | ENDLESS | {"run.dir": run}
    with commands(*pods(2, 2, overrides), log=tmp_path / "log") as (first, second):
        wait_until(lambda: steps_done(run) >= 2)
        second.process.send_signal(signal.SIGTERM)  # to the first process of one pod
        ended = [first.wait(60), second.wait(60)]
    assert [decision(pod.code) for pod in ended] == ["Ignore", "Ignore"], ended
    step = newest_step(run)
    assert steps_done(run) == step

    with commands(*pods(2, 2, overrides | {"run.stop_after": step + 1}), log=tmp_path / "again") as (first, second):
        ended = [first.wait(), second.wait()]
    assert [decision(pod.code) for pod in ended] == ["Succeeded", "Succeeded"], ended
    assert f"4 processes x 2 pairs = 8, steps {step + 1} to {step + 1}" in ended[0].output

    with commands(*pods(2, 2, overrides | {"batch.global_size": 6}), log=tmp_path / "wrong") as (first, second):
        ended = [first.wait(), second.wait()]
    assert "FailJob" in [decision(pod.code) for pod in ended], ended
    assert "batch.global_size: 6 does not divide by the 4 processes" in ended[0].output


# ---- a hostfile


def by_hostfile(overrides: Overrides, folder: Path) -> Finished:
    """The launcher on each of two nodes, without ssh; both are this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    hostfile = folder / "hostfile"
    hostfile.write_text("node-0 slots=1\nnode-1 slots=1\n")
    place = ["--hostfile", str(hostfile), "--no_ssh", "--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    given = [
        (
            [f"{BINARIES}/deepspeed", *place, "--node_rank", str(node), "--module", "trainer", *arguments(overrides)],
            environment(),
        )
        for node in (0, 1)
    ]
    with commands(*given, log=folder / "log") as nodes:
        ended = [node.wait() for node in nodes]
    return Finished(max(node.code for node in ended), "".join(node.output for node in ended))


def by_deepspeed(overrides: Overrides, folder: Path) -> Finished:
    return launch(2, overrides)


# ---- Ray Train


@contextlib.contextmanager
def ray_train(
    overrides: Overrides, folder: Path, module: str = "trainer.launch_ray", **more: str
) -> Iterator[pipelines.Launch]:
    """`python -m trainer.launch_ray --workers 2` on a Ray of its own; `more` goes into its environment."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, "--workers", "2", *arguments(overrides)]
    with pipelines.ray_folder() as ray:
        started = pipelines.start(command, folder / "log", pipelines.environment(ray, environment(**more)))
        try:
            yield started
        finally:
            started.end()


def under_ray(overrides: Overrides, folder: Path) -> Finished:
    with ray_train(overrides, folder) as started:
        return Finished(started.wait(), started.text())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--workers", "0"], "--workers: 0 is not a number of processes; give 1 or more"),
        (["--workers", "2", "--max-failures", "-1"], "--max-failures: -1 is not a number of failures; give 0 or more"),
        (["--workers", "3"], "batch.global_size: 32 does not divide by the 3 processes of this run"),
    ],
)
def test_what_ray_train_would_not_get_far_with_is_refused_before_it_starts(flags: list[str], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        launch_ray.main([*flags, "--config", SMOKE])


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (
            {"RAY_TMPDIR": f"{os.devnull}/no"},
            "Ray cannot start on this machine ([Errno 20] Not a directory: '/dev/null/no",
        ),
        ({"RAY_ADDRESS": "127.0.0.1:1"}, "RAY_ADDRESS: no Ray cluster answers at '127.0.0.1:1' ([Errno 111]"),
    ],
)
def test_ray_train_without_a_ray_is_one_sentence(env: dict[str, str], said: str, short_run: dict[str, object]) -> None:
    command = [sys.executable, "-m", "trainer.launch_ray", "--workers", "1", *arguments(short_run)]
    env = environment() | env
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT, env=env, check=False)
    assert ended.returncode == 2, ended.stderr
    assert errors_of(ended.stderr)[0].startswith(f"error: {said}")


@pytest.mark.prove
def test_an_empty_address_is_no_cluster_to_wait_for(short_run: dict[str, object], tmp_path: Path) -> None:
    overrides = short_run | {"batch.global_size": 4096, "run.dir": tmp_path / "run"}
    command = [sys.executable, "-m", "trainer.launch_ray", "--workers", "4096", *arguments(overrides)]
    with pipelines.ray_folder() as ray:
        env = pipelines.environment(ray, environment()) | {"RAY_ADDRESS": ""}
        started = pipelines.start(command, tmp_path / "log", env)
        try:
            assert started.wait() == 2, started.text()
        finally:
            started.end()
    assert "--workers: 4096 workers need as many CPUs and there are" in errors_of(started.text())[0]


@pytest.mark.prove
def test_a_worker_that_ray_train_loses_changes_nothing(short_run: dict[str, object], tmp_path: Path) -> None:
    overrides = short_run | {"optim.steps": 40, "run.save_every": 4, "run.keep": 20}
    alone = by_deepspeed(overrides | {"run.dir": tmp_path / "undisturbed"}, tmp_path)
    assert alone.code == 0, alone.output
    run = tmp_path / "run"
    with ray_train(overrides | {"run.dir": run}, tmp_path) as started:
        wait_until(lambda: steps_done(run) >= 9)
        workers = [pid for pid, title in pipelines.titles(started).items() if "RayTrainWorker" in title]
        assert len(workers) == 2, pipelines.titles(started)
        os.kill(workers[1], signal.SIGKILL)
        assert started.wait() == 0, started.text()
    assert started.text().count("2 processes x 4 pairs = 8") == 2, "started, and started anew"
    assert result_of(run) == result_of(tmp_path / "undisturbed")


def own_lines(text: str) -> str:
    """Without those of PlacementGroupCleaner, an actor of Ray's own: on a busy machine its thread has ended in a traceback, of a run that
    was right."""
    return "\n".join(line for line in text.splitlines() if "(PlacementGroupCleaner " not in line)


@pytest.mark.prove
@pytest.mark.parametrize("everyone", [False, True])
def test_sigterm_to_the_driver_of_ray_train_saves(short_run: dict[str, object], tmp_path: Path, everyone: bool) -> None:
    """To it alone, as `ray job stop` sends it, or to all processes of a job, Ray's among them, as Slurm and systemd do."""
    run = tmp_path / "run"
    with ray_train(short_run | ENDLESS | {"run.dir": run, "data.workers": 1}, tmp_path) as started:
        wait_until(lambda: steps_done(run) >= 2)
        (started.tell_all if everyone else started.process.send_signal)(signal.SIGTERM)
        assert started.wait() == TOLD_TO_END, started.text()
    assert steps_done(run) == newest_step(run)
    assert "Traceback" not in own_lines(started.text())


def test_sigterm_while_ray_starts_is_an_interrupt(short_run: dict[str, object]) -> None:
    program = (
        "import os, signal; from pipeline.contracts.cli import run_cli; from trainer import launch_ray\n"
        "launch_ray._connect = lambda *given: os.kill(os.getpid(), signal.SIGTERM)\n"
        "run_cli(launch_ray.main)"
    )
    command = [sys.executable, "-c", program, "--workers", "1", *arguments(short_run)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=100, cwd=ROOT, env=environment(), check=False
    )
    assert (ended.returncode, errors_of(ended.stderr)) == (
        130,
        ["error: interrupted; the same command again resumes"],
    )


@pytest.mark.prove
def test_an_error_of_a_ray_worker_is_one_sentence_and_no_new_start(
    short_run: dict[str, object], tmp_path: Path
) -> None:
    corpus = {"data.manifest": tmp_path / "nothing"}
    with ray_train(short_run | corpus | {"run.dir": tmp_path / "run"}, tmp_path) as started:
        assert started.wait() == 2, started.text()
    assert len(errors_of(started.text())) == 1, started.text()
    assert str(tmp_path / "nothing") in errors_of(started.text())[0]
    assert "Traceback" not in own_lines(started.text())


@pytest.mark.prove
def test_an_error_of_one_ray_worker_alone_is_said_too(short_run: dict[str, object], tmp_path: Path) -> None:
    """The other one leaves, which Ray takes for a loss: it starts both anew, and they find that the run has ended."""
    module = "tests.trainer.instrumented_ray"
    with ray_train(short_run | {"run.dir": tmp_path / "run"}, tmp_path, module, WRONG_INPUT="1:3-3") as started:
        assert started.wait() == 2, started.text()
    assert errors_of(started.text()) == ["error: batch 3 of process 1 is wrong; that is what the test wants"]
    assert started.text().count("2 processes x 4 pairs = 8") == 1, "nothing was trained again"


# ---- all of them

LAUNCHERS: dict[str, Callable[[Overrides, Path], Finished]] = {
    "deepspeed": by_deepspeed,
    "hostfile": by_hostfile,
    "slurm": under_slurm,
    "kubernetes": under_kubernetes,
    "ray": under_ray,
}


@pytest.mark.prove
def test_every_launcher_gives_the_same_run_and_takes_up_that_of_another(
    short_run: dict[str, object], tmp_path: Path
) -> None:
    """Losses, weights, moments and random states, to the bit."""

    def finish(launcher: str, run: Path, **stop: object) -> None:
        notes = tmp_path / f"{run.name}-{launcher}"
        finished = LAUNCHERS[launcher](short_run | {"run.dir": run, "run.keep": 9} | stop, notes)
        assert finished.code == 0, f"{launcher}: {finished.output}"

    for launcher in LAUNCHERS:
        finish(launcher, tmp_path / launcher)
    expected = result_of(tmp_path / "deepspeed")
    assert len(expected.losses) == 6
    for launcher in LAUNCHERS:
        assert result_of(tmp_path / launcher) == expected, launcher
    changing = tmp_path / "changing"
    for step, launcher in enumerate(("deepspeed", "ray", "slurm", "kubernetes", "ray", "hostfile"), start=1):
        finish(launcher, changing, **{"run.stop_after": step})
    assert result_of(changing).losses == expected.losses
    assert result_of(changing).files == expected.files


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run has come to: a line's figures for each step, and digests of what its last checkpoint holds."""

    losses: list[tuple[float, ...]]
    files: dict[str, str]


def result_of(run: Path) -> Result:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [tuple(line[key] for key in ("step", "loss", "gradient_norm", "logit_scale")) for line in lines]
    place = run / "checkpoints"
    tag = checkpoint.tag_of(newest_step(run))
    record = checkpoint.read_record(str(place), tag)
    found = {name: hashlib.sha256((place / tag / name).read_bytes()).hexdigest() for name in record.files}
    return Result(figures, found)


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def newest_step(run: Path) -> int:
    return max(checkpoint.step_of(tag) for tag in checkpoint.complete_tags(str(run / "checkpoints")))
