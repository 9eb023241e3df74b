"""candidates and exact: the partitions between them, which are an affair of memory and may not change a row."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.commit import Result, Unit
from pipeline.contracts import parquet
from pipeline.sources.files import SourceFile, SourcesConfig
from pipeline.sources.rows import stamp
from pipeline.stages.candidates import Source, _candidates, _exact, _read_source
from pipeline.stages.common import partition_units, read_partition


def _lists(folder: Path) -> list[SourceFile]:
    """Three lists that share pairs with each other and repeat some of their own."""
    folder.mkdir()
    files = []
    for number in range(3):
        pairs = [((number * 97 + place) % 211, place % 3) for place in range(160)]
        lines = [f"http://e.org/{url}.jpg\ta dog {caption}\n" for url, caption in pairs]
        (folder / f"{number}.tsv").write_text("url\tcaption\n" + "".join(lines))
        files.append(SourceFile(str(folder / f"{number}.tsv"), f"{number}.tsv"))
    return files


def _exact_by(partitions: int, files: list[SourceFile], out: Path) -> tuple[pa.Table, pa.Table]:
    config = SourcesConfig(paths=["t"])
    by_name = {file.name: Source(file, "", 160, stamp(file)) for file in files}
    names = []
    for number, file in enumerate(files):
        unit = Unit(f"{number:05d}", (file.name, ""), {"start": 0, "stop": 160})
        rows = _candidates(config, partitions, _read_source(by_name, config, unit), unit).rows
        names.append(parquet.commit(rows, str(out), unit.id).name)
    found: list[Result] = [_exact(read_partition(str(out), names, unit), unit) for unit in partition_units(partitions)]
    return pa.concat_tables([one.rows for one in found]), pa.concat_tables([one.rejected for one in found])


@pytest.mark.parametrize("partitions", [2, 7, 100])
def test_the_number_of_partitions_changes_no_row_and_not_their_order(tmp_path: Path, partitions: int) -> None:
    files = _lists(tmp_path / "lists")
    kept, repeated = _exact_by(1, files, tmp_path / "one")
    assert kept.num_rows == len(
        {(row["url"], row["caption_raw"]) for row in [*kept.to_pylist(), *repeated.to_pylist()]}
    )
    assert kept.num_rows + repeated.num_rows == 480
    assert repeated.num_rows > 50
    again, again_repeated = _exact_by(partitions, files, tmp_path / "many")
    assert again.equals(kept)
    assert again_repeated.equals(repeated)
