"""What the environment says of a process's place in its run, and how processes wait until all are there."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from pipeline.contracts.errors import InputError
from tests.ports import free_port
from tests.trainer.launching import SMOKE, Process, arguments_of, errors_of, together, wait_until
from trainer import zero
from trainer.__main__ import main

WHOLE = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_place_is_read_whole(environment: pytest.MonkeyPatch) -> None:
    for name, value in WHOLE.items():
        environment.setenv(name, value)
    assert zero.place_in_run() == (1, 0, 2, "10.0.0.1", 29500)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RANK": "2"}, "RANK: '2' is not a whole number from 0 to 1; start the run with a launcher"),
        ({"RANK": "-1"}, "RANK: '-1' is not"),
        ({"LOCAL_RANK": "one"}, "LOCAL_RANK: 'one' is not a whole number from 0 to 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: '0' is not a whole number from 1 to"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE: '9999"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT: 'abc' is not a whole number from 1 to 65535"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT: '65536' is not"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR: not set, although others of RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR"),
        (dict.fromkeys(WHOLE, "") | {"RANK": "0"}, "LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: not set"),
    ],
)
def test_what_is_no_place_in_a_run_is_refused(
    change: dict[str, str], said: str, environment: pytest.MonkeyPatch
) -> None:
    for name, value in (WHOLE | change).items():
        environment.setenv(name, value)
    with pytest.raises(InputError) as refused:
        zero.join_processes()
    assert str(refused.value).startswith(said)


def test_a_gpus_memory_and_attention_are_settled_before_processes_meet(environment: pytest.MonkeyPatch) -> None:
    class Met(Exception):
        pass

    def meet() -> None:
        raise Met

    environment.setattr(zero, "_quiet_deepspeed", meet)  # by which they do
    for name, value in (WHOLE | {"DS_ACCELERATOR": "cpu", "PYTORCH_ALLOC_CONF": ""}).items():
        environment.setenv(name, value)
    environment.delenv("PYTORCH_ALLOC_CONF")
    torch.backends.cuda.enable_cudnn_sdp(True)
    with pytest.raises(Met):
        zero.join_processes()
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize("value", ["abc", "", "0", "-2"])
def test_check_refuses_a_world_size_that_is_none(value: str, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WORLD_SIZE", value)
    with pytest.raises(InputError, match=f"WORLD_SIZE: '{value}' is not a whole number from 1 to"):
        main(["--config", SMOKE, "--check"])


@pytest.mark.prove
def test_a_process_that_waits_for_the_others_says_where_and_ends_by_sigterm(
    short_run: dict[str, object], tmp_path: Path
) -> None:
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = Process(0, "trainer", arguments_of(short_run | {"run.dir": tmp_path / "run"}), place)
    try:
        wait_until(lambda: f"waiting for 2 processes at 127.0.0.1:{place['MASTER_PORT']}" in process.output())
        time.sleep(1)
        process.signal(signal.SIGTERM)
        assert process.wait(10).code == -signal.SIGTERM
    finally:
        process.kill()
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_not_there_is_one_sentence(short_run: dict[str, object], tmp_path: Path) -> None:
    overrides = short_run | {"run.dir": tmp_path / "run"}
    ended = together(1, overrides, environment={"GLOO_SOCKET_IFNAME": "nosuch0"})
    assert ended.code == 1, ended.output
    [said] = errors_of(ended.output)
    assert re.match(
        "error: MASTER_ADDR=.*: the processes did not find each other: .*nosuch0; check .*GLOO_SOCKET", said
    )
    assert "Traceback" not in ended.output
