"""`make leaks` at its smallest, and that it fails where it should: one forged plant, or one forged answer, is enough.

The audit is made with evidence "hash-only", so it is also shown here what such a report does not say.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.leaks import __main__ as leaks
from tests.e2e.leaks.ground import Ground, Plant
from tests.e2e.steps import Steps

SEED, ROWS = 20260, 180


@dataclasses.dataclass(frozen=True)
class Audited:
    """A planted ground and the report that the real commands made of it."""

    ground: Ground
    report: Path


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    folder = tmp_path_factory.mktemp("leaks") / "ground"
    leaks.fresh_folder(folder)
    doing = Steps(folder / "logs", total=3)
    ground = leaks.planted(folder, SEED, ROWS, doing)
    leaks.audit(folder, doing, "report.evidence=hash-only")
    return Audited(ground, folder / "report")


def test_what_was_planted_was_found(audited: Audited) -> None:
    assert leaks.judged(audited.ground, audited.report, SEED) == 0


def test_hash_only_shows_nothing_of_the_corpus(audited: Audited) -> None:
    """No caption or URL of the corpus, no caption of a set, no picture: neither in the report nor in the working folder."""
    files = [
        path
        for folder in (audited.report, Path(f"{audited.report}.work"))
        for path in folder.rglob("*")
        if path.is_file()
    ]
    tables = [pq.read_table(path) for path in files if path.suffix == ".parquet"]
    for column in ("url", "caption"):
        found = [table[column] for table in tables if column in table.column_names and table.num_rows]
        assert len(found) >= 5
        assert all(one.null_count == len(one) for one in found)
    # Parquet compresses, so tables are read back; everything else, indexes of shards included, is searched as it lies there.
    everything = b"".join(path.read_bytes() for path in files)
    everything += b"".join(repr(table.to_pylist()).encode() for table in tables)
    captions = [str(row["caption"]) for row in audited.ground.rows]
    captions += [
        one.caption for examples in audited.ground.sets.values() for one in examples if one.caption is not None
    ]
    assert len(captions) > ROWS
    for said in (*captions, "example.org", "data:image"):
        assert said.encode() not in everything
        assert json.dumps(said)[1:-1].encode() not in everything


def added(ground: Ground) -> None:
    """An example of `clean` is said to be in the corpus, where it is not."""
    uid = next(uid for uid, what in ground.others.items() if what == "other picture")
    ground.copies.append(Plant("clean", ground.sets["clean"][0].id, uid, "recompressed", "pdq"))


def withheld(ground: Ground) -> None:
    """A copy is not told: for the comparison a look-alike that was flagged."""
    ground.copies.remove(next(one for one in ground.copies if one.kind == "recoloured"))


def of_another_method(ground: Ground) -> None:
    place, one = next((place, one) for place, one in enumerate(ground.copies) if one.method == "phash")
    ground.copies[place] = one._replace(method="pdq")


def no_repeat(ground: Ground) -> None:
    place, one = next((place, one) for place, one in enumerate(ground.sets["effect"]) if one.shows != one.number)
    ground.sets["effect"][place] = dataclasses.replace(one, shows=one.number)


def a_caption_withheld(ground: Ground) -> None:
    ground.captions.remove(next(one for one in ground.captions if one.method == "near"))


def another_class(ground: Ground) -> None:
    uid, label = next(iter(ground.names.items()))
    ground.names[uid] = 1 + label % 8


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (added, "must be found by pdq, and was found by None"),
        (withheld, "was found by pdq in a row that is: recoloured"),
        (of_another_method, "must be found by pdq, and was found by phash"),
        (no_repeat, "repeats inside sets were found"),
        (a_caption_withheld, "was found by near in a row that is"),
        (another_class, "rows of the corpus name one of"),
    ],
)
def test_a_forged_plant_is_noticed(
    audited: Audited, forge: Callable[[Ground], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {name: list(examples) for name, examples in audited.ground.sets.items()}
    forged = dataclasses.replace(
        audited.ground,
        sets=own,
        copies=list(audited.ground.copies),
        captions=list(audited.ground.captions),
        names=dict(audited.ground.names),
    )
    forge(forged)
    assert leaks.judged(forged, audited.report, SEED) == 1
    assert any(line.startswith("  FAIL") and said in line for line in capsys.readouterr().out.splitlines())


def test_a_forged_verdict_is_noticed(audited: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Path(shutil.copytree(audited.report, tmp_path / "report"))
    figures = json.loads((report / "report.json").read_bytes())
    few = next(one for one in figures["sets"] if one["name"] == "few")
    few["verdict"] = "overlap, effect"
    (report / "report.json").write_text(json.dumps(figures))
    assert leaks.judged(audited.ground, report, SEED) == 1
    assert "FAIL  few: 4 leaked: 'overlap, effect', expected 'not testable'" in capsys.readouterr().out


def test_another_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(SystemExit, match="not of an earlier run"):
        leaks.main(["--seed", "1", "--folder", str(tmp_path)])
    assert (tmp_path / "mine.txt").read_text() == "kept"


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_at_its_own_size(tmp_path: Path, seed: int) -> None:
    assert leaks.main(["--seed", str(seed), "--folder", str(tmp_path / "ground")]) == 0


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_with_a_descriptor_that_is_trained_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Larger crops and frames, mirrored and turned copies too: each by the descriptor, and no look-alike."""
    folder = str(tmp_path / "ground")
    assert leaks.main(["--seed", "4", "--rows", "400", "--folder", folder, "--train-minutes", "3"]) == 0
    shown = capsys.readouterr().out
    for kind in ("cropped to half its area", "framed by a tenth", "mirrored", "turned by ten degrees"):
        assert f"  {kind:<36}descriptor             2      2   descriptor 2" in shown
