"""`verify` beside what a forger could leave out, and a report from a stranger: a sentence for each, no traceback."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evaluation.__main__ import main
from evaluation.config import OverlapConfig
from evaluation.datasets import open_set
from evaluation.overlap import copies, thresholds
from evaluation.overlap.splits import read_predictions
from evaluation.overlap.tables import NEAREST_SCHEMA
from evaluation.report import files, verify
from evaluation.report.numbers import is_over
from evaluation.report.pair_check import SIDES, left_out
from evaluation.report.removal_check import check_removal
from pipeline.contracts.config import load_config
from pipeline.contracts.errors import AuditFinding, InputError
from tests.evaluation.forging import Change, replace, reseal, restate
from tests.evaluation.made import Made


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.report, tmp_path / "copy"))


# ---- the root


def test_the_root_is_printed_and_held_against_the_folder(
    made: Made, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = files.read_seal(str(made.report)).digest
    assert f"root: {root}" in made.result.stdout
    with pytest.raises(AuditFinding, match="over the limit"):
        main(["report", str(made.report)])
    assert f"root {root}" in capsys.readouterr().out
    main(["verify", str(made.report), "--root", root.upper()])
    assert f"root {root}: is the one that was given" in capsys.readouterr().out
    assert verify(str(copy), root) == []
    seal = files.read_seal(str(copy))
    inside = {name: (copy / name).read_bytes() for name in seal.files}
    (copy / "manifest.json").write_bytes(
        files.seal(inside, {**seal.inputs, "descriptor_sha256": None, "names_sha256": {}})
    )
    with pytest.raises(AuditFinding, match=f"the root is '[0-9a-f]+', not '{root}': this is another report"):
        main(["verify", str(copy), "--root", root])
    with pytest.raises(InputError, match="--root 'f00': is no root of a report"):
        main(["verify", str(copy), "--root", "f00"])


def test_a_report_is_read_only_as_it_was_sealed(copy: Path) -> None:
    report = json.loads((copy / "report.json").read_bytes())
    restate(report, ("over_limit",), [])
    (copy / "report.json").write_bytes(files.canonical(report))
    with pytest.raises(InputError, match=r"report\.json: sha256 differs from the manifest"):
        main(["report", str(copy)])
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match="no finished report is here"):
        main(["report", str(copy)])


# ---- what is left out


def without(transform: str) -> Change:
    return lambda table: table.filter(pc.not_equal(table["transform"], transform))


def test_every_change_of_a_copy_has_its_size(made: Made) -> None:
    """A picture of each size from 1 to 60 pixels: what `copies` leaves out of it is what `verify` lets it leave out."""
    assert list(SIDES) == list(copies.TRANSFORMS)
    for width, height in [(side, side + more) for side in range(1, 60) for more in (0, 1, 7, 300)]:
        picture = Image.new("RGB", (width, height))
        sizes = {name: min(change(picture).size) for name, change in copies.TRANSFORMS.items()}
        assert not left_out([name for name, size in sizes.items() if size >= 16]), (width, height)
    for lost in set(SIDES) - {"thumbnail of 64 pixels", "half size", "crop, a quarter of the area"}:
        assert left_out([name for name in SIDES if name != lost]), lost


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("copies.parquet", lambda table: table.slice(0, 0), "holds other examples than the sample"),
        ("copies.parquet", without("mirrored"), "has not one copy of every kind"),
        ("copies.parquet", without("CLIP's centre crop of 224"), "has not one copy of every kind"),
        ("copies.parquet", lambda table: table.slice(16), "holds other examples than the sample"),
        ("nearest.parquet", lambda table: table.slice(0, 0), "holds other examples than the sample"),
    ],
)
def test_what_is_left_out_is_missed(copy: Path, name: str, change: Change, said: str) -> None:
    replace(copy, name, change)
    assert any(name in problem and said in problem for problem in verify(str(copy)))


@pytest.mark.parametrize("column", ["uid", "url", "caption", "pdq_quality"])
def test_a_row_of_the_corpus_says_one_thing(copy: Path, column: str) -> None:
    """The nearest picture of a leaked example is its pair: the same row in two tables."""
    other = {"uid": bytes(16), "url": "https://example.org/innocent.jpg", "caption": "Another", "pdq_quality": 99}

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0][column] = other[column]
        return pa.Table.from_pylist(rows, table.schema)

    replace(copy, "nearest.parquet", change)
    said = f"has another {column} than where it is named before"
    assert any("nearest.parquet" in problem and said in problem for problem in verify(str(copy)))


# ---- a stranger's report


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("statistics", "tests"), 0),
        (("statistics", "confidence"), 7.0),
        (("sets", 0, "examples"), 0),
        (("sets", 0, "found", "share", "low"), 1e308),
        (("corpus", "rows"), 0),
        (("corpus", "rows"), 10**400),
    ],
)
def test_numbers_that_nothing_can_be_computed_with_are_named(
    copy: Path, path: tuple[str | int, ...], value: object
) -> None:
    report = json.loads((copy / "report.json").read_bytes())
    restate(report, path, value)
    (copy / "report.json").write_bytes(files.canonical(report))
    reseal(copy)
    assert verify(str(copy)), path


def test_a_manifest_with_what_json_has_no_word_for(copy: Path) -> None:
    text = (copy / "manifest.json").read_text("utf-8")
    (copy / "manifest.json").write_text(text.replace('"config_digest"', '"x": NaN, "config_digest"', 1), "utf-8")
    assert [problem.split(": ")[1] for problem in verify(str(copy))] == ["differs from its own digest; restore it"]


def test_tables_of_other_examples_and_of_no_text(copy: Path) -> None:
    def moved(table: pa.Table) -> pa.Table:
        rows = [{**row, "eval_row": row["eval_row"] + 1000} for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, table.schema)

    def broken(table: pa.Table) -> pa.Table:
        column = table["url"].combine_chunks()
        offsets, data = column.buffers()[1], column.buffers()[2].to_pybytes().replace(b"example", b"\xff\xfeample")
        damaged = pa.StringArray.from_buffers(len(column), offsets, pa.py_buffer(data))
        place = table.column_names.index("url")
        return table.set_column(place, table.schema.field(place), damaged)

    for name in ("splits/scenes.parquet", "splits/blind.parquet", "nearest.parquet", "pairs.parquet"):
        replace(copy, name, moved)
    assert any("is row 1000 of the set, in the split table 0" in problem for problem in verify(str(copy)))
    replace(copy, "pairs.parquet", broken)
    assert any("pairs.parquet: 'Column" in problem for problem in verify(str(copy)))


def test_a_line_of_no_number_in_a_list_of_rows(made: Made, copy: Path) -> None:
    report = files.read_report(str(made.report))
    corpus = report.corpus.model_copy(update={"kind": "parquet"})
    (copy / "removal_ids.txt").write_text("a.parquet\t\u00b2\tkey\n", "utf-8")
    problems = check_removal(str(copy), report.model_copy(update={"corpus": corpus}), [], [])
    assert any("removal_ids.txt: is not the list of rows" in problem for problem in problems)


def test_labels_of_a_stranger(tmp_path: Path) -> None:
    for text, said in (
        ("[" * 100_000, "is no answer of the labelling page"),
        (
            '{"set": "a", "eval_id": "b", "uid": "c", "measure": "pdq", "rater": "\\ud800", "answer": "same"}',
            "is no text",
        ),
    ):
        (tmp_path / "labels.jsonl").write_text(text, "utf-8")
        with pytest.raises(InputError, match=said):
            thresholds.read_labels([str(tmp_path / "labels.jsonl")], NEAREST_SCHEMA.empty_table())


@pytest.mark.parametrize("n", [50, 100, 200, 1000])
def test_a_share_that_is_the_limit_is_within_it(n: int) -> None:
    """29 of 100 at a limit of 0.29, where 0.29 * 100 is 28.999999999999996."""
    for hits in range(n):
        limit = float(f"{hits / n:.4f}")
        assert not is_over(hits, n, limit)
        assert is_over(hits + 1, n, limit)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.replace_schema_metadata({**table.schema.metadata, b"\xff": b"\xfe"}), "has metadata"),
        (lambda table: table.set_column(1, "eval_id", pa.array([["e"]] * table.num_rows)), "column 'eval_id' is list"),
    ],
)
def test_predictions_of_a_stranger(made: Made, tmp_path: Path, change: Change, said: str) -> None:
    table = pq.read_table(made.report / "predictions" / "scenes.parquet")
    pq.write_table(change(table), tmp_path / "p.parquet")
    one = load_config(OverlapConfig, str(made.config)).sets[0]
    with pytest.raises(InputError, match=said):
        read_predictions(str(tmp_path / "p.parquet"), open_set(one), "0" * 64)
