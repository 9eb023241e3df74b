"""The predictions in a report's folder: whole ones are silent, and what a forger changes in them is named."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evaluation.report import files
from evaluation.report.predictions_check import check_copy, read_copy
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from tests.evaluation.forging import Change, stated, with_value
from tests.evaluation.made import TRAINING, Made


def problems_of(folder: Path, made: Made) -> list[str]:
    """What is wrong with `folder`/predictions beside the report that was made."""
    one = files.read_report(str(made.report)).sets[0]
    split = pq.read_table(made.report / "splits" / "scenes.parquet").to_pylist()
    try:
        copy = read_copy(str(folder), one)
        assert copy is not None
        assert one.effect is not None
        sha256 = storage.sha256_file(copy.place)
        return [*check_copy("report.json", one, one.effect, split, copy, sha256), f"training {copy.training}"]
    except InputError as error:
        return [str(error)]


def test_whole_predictions(made: Made) -> None:
    assert problems_of(made.report, made) == [f"training {TRAINING}"]
    assert read_copy(str(made.report), files.read_report(str(made.report)).sets[1]) is None, "it has no scores"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_value("e001", "correct", False), "example 'e001': correct is False, its split says True"),
        (with_value("e001", "label", 11), "example 'e001': is of another picture or label than its split"),
        (with_value("e001", "sha256", bytes(32)), "example 'e001': is of another picture or label than its split"),
        (with_value("e001", "prediction", 12), "example 'e001': correct does not follow from label and prediction"),
        (with_value("e001", "eval_id", "e002"), "an example comes twice"),
        (with_value("e001", "eval_id", "other"), "example 'other' is not in the split"),
        (lambda table: table.slice(1), "example 'e000': is not there, and its split has a label or an outcome"),
        (lambda table: table.append_column("url", table["eval_id"]), "has a column 'url' of string, which no pred"),
        (lambda table: table.drop_columns(["correct"]), "has no column 'correct'"),
        (lambda table: table.take(list(range(43))[::-1]), "effect.predictions_sha256 is"),
        (stated("notes", "a caption"), "has metadata 'notes', which no predictions have"),
        (stated("set_content_hash", "00" * 32), "set_content_hash is '0000"),
        (stated("format_version", "1"), "format_version is '1'"),
        (stated("model_sha256", "ab" * 32), "effect.model is None, the tables give 'abab"),
        (stated("content_root", "ab" * 32), "effect.model_content_root is"),
        (stated("seed", "six"), "seed is 'six', no number that a model's card states"),
    ],
)
def test_forged_predictions_are_named(made: Made, tmp_path: Path, change: Change, said: str) -> None:
    (tmp_path / "predictions").mkdir()
    table = pq.read_table(made.report / "predictions" / "scenes.parquet")
    pq.write_table(change(table), tmp_path / "predictions" / "scenes.parquet")
    assert any(said in problem for problem in problems_of(tmp_path, made))
