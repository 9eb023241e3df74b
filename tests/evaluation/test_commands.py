"""The table of commands: what it names exists and fits together, which mypy does not see."""

import inspect
import pkgutil
import typing
from pathlib import Path

import pytest

from evaluation.__main__ import CONFIGURED, Configured, main
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError
from tests.conftest import ROOT, s3_environment


@pytest.mark.parametrize("command", CONFIGURED, ids=[one.name for one in CONFIGURED])
def test_what_a_command_names_takes_its_configuration_and_returns_text(command: Configured) -> None:
    config = pkgutil.resolve_name(command.config)
    assert issubclass(config, StrictModel)
    for place in (command.plan, command.run):
        function = pkgutil.resolve_name(place)
        (parameter,) = inspect.signature(function).parameters
        hints = typing.get_type_hints(function)
        assert issubclass(config, hints[parameter])
        assert hints["return"] is str


_OVERLAP = ["corpus={files='x', layout='folder'}", "sets=[{name='x', path='x'}]", "report.dir=new"]
_SCORING = ["model=x", "sets=[{name='x', path='x'}]", "out=new"]
_PROBE = ["model=x", "sets=[{name='x', train={name='x', path='x'}, test={name='x', path='x'}}]", "out=new"]
_HUMAN = ["set={name='x', path='x'}", "out=new"]
SETTINGS = {
    "overlap": [*_OVERLAP, "descriptor={weights='x'}"],
    "label": _OVERLAP,
    "train-descriptor": ["data={set={name='x', path='x'}}", "run.out=new"],
    "zeroshot": _SCORING,
    "retrieval": _SCORING,
    "probe": _PROBE,
    "fewshot": _PROBE,
    "bias": ["model=x", "sets=[{name='x', path='x', label='x', probe='identity'}]", "out=new"],
    "human": _HUMAN,
    "human-scores": _HUMAN,
    "robustness": ["shifts=[{name='objectnet', standard=0.5, shift=[0.4]}]", "out=new"],
}
"""What each command needs at the least; of what it names nothing is there."""


@pytest.mark.parametrize("command", CONFIGURED, ids=[one.name for one in CONFIGURED])
def test_an_output_that_is_a_file_is_refused_before_anything_else(
    command: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.toml").touch()
    (tmp_path / "taken").write_text("mine", "utf-8")
    for key in command.folders:
        for flags in ([], ["--check"]):
            with pytest.raises(InputError, match=r"^taken: is a file, not a folder; choose another output$"):
                main([command.name, "--config", "empty.toml", *flags, *SETTINGS[command.name], f"{key}=taken"])
        with pytest.raises(InputError, match=r"unknown kind of place; use a local path or s3://"):
            main([command.name, "--config", "empty.toml", "--check", *SETTINGS[command.name], f"{key}=gs://b/k"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.toml", "taken"]


@pytest.mark.parametrize("command", ["overlap", "train-descriptor"])
def test_a_check_asks_no_store(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped configurations write to s3://, and a laptop without it may look at what they would do."""
    for key, value in s3_environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(key, value)
    name = command.removeprefix("train-")
    assert main([command, "--config", str(ROOT / "evaluation" / "configs" / f"{name}.toml"), "--check"]) is None
    assert "s3://bucket/" in capsys.readouterr().out
