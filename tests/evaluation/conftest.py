"""What several tests of evaluation read."""

import pytest

from tests.evaluation.made import Made


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One report for all tests that only read it."""
    return Made(tmp_path_factory.mktemp("overlap"))
