"""What the commands over finished answers promise together: shipped configurations that load, and no torch or ray to read answers."""

import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.__main__ import main
from tests.evaluation.answers import outcomes, write_answers

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("command", ["robustness", "bias", "human", "human-scores"])
def test_shipped_configurations(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = command.removesuffix("-scores")
    assert main([command, "--config", str(ROOT / "evaluation" / "configs" / f"{name}.toml"), "--check"]) is None
    assert "# digest " in capsys.readouterr().out


def test_reading_answers_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    scores, labels = outcomes([True, False] * 40)
    place = write_answers(tmp_path / "toy.parquet", scores, labels, groups=["a", "b", "b", "a"] * 20)
    code = (
        "import sys\nfrom evaluation.__main__ import main\n"
        f"for command in ('compare', 'calibration', 'groups'):\n    main([command, {place!r}])\n"
        "print(*(name for name in ('ray', 'torch') if name in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    assert "toy: 80 examples, accuracy 50.00%" in done.stdout
