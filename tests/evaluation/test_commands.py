"""The table of commands: what it names exists and fits together, which mypy does not see."""

import inspect
import pkgutil
import typing

import pytest

from evaluation.__main__ import CONFIGURED, Configured
from pipeline.contracts.config import StrictModel


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
