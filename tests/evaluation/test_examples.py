"""What an example is: videos worked out by hand, and many at random by the hand of `verify`; what a file says of frames and may not."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation import scoring, zeroshot
from evaluation.config import OverlapSet
from evaluation.metrics import Answers
from evaluation.overlap.examples import COLUMNS, examples
from evaluation.overlap.splits import read_predictions
from evaluation.overlap.tables import METHODS, PUBLISHED_SPLIT_SCHEMA
from evaluation.report import twin
from pipeline.content.labelled import open_set
from pipeline.contracts.errors import InputError

SCHEMA = pa.schema([PUBLISHED_SPLIT_SCHEMA.field(name) for name in ("group", *COLUMNS)])
Row = dict[str, Any]


def a_split(rows: list[Row]) -> pa.Table:
    """A split of these rows; what they do not say is null."""
    return pa.Table.from_pylist([{name: row.get(name) for name in SCHEMA.names} for row in rows], SCHEMA)


def told(table: pa.Table) -> list[Row]:
    """Rows of examples, with clusters numbered as they come."""
    number: dict[object, int] = {}
    return [{**row, "cluster": number.setdefault(row["cluster"], len(number))} for row in table.to_pylist()]


def test_videos_by_hand() -> None:
    """Four videos. b and c share picture 3, c and a picture 1; d stands alone, and its first frame was not scored."""
    columns = ("group", "cluster", "in_overlap", "method", "seen", "label", "correct")
    frames = [
        ("b", 0, False, None, None, 5, True),
        ("a", 1, True, "phash", False, 6, False),
        ("b", 3, True, "pdq", True, 5, True),
        ("c", 3, False, None, None, 7, True),
        ("a", 4, True, "image_sha256", None, 6, False),
        ("c", 1, False, None, None, 7, True),
        ("d", 6, False, None, None, None, None),
        ("d", 7, False, None, None, 8, True),
    ]
    split = a_split([dict(zip(columns, frame, strict=True)) for frame in frames])
    found = examples(split)
    assert [tuple(row[name] for name in columns[1:]) for row in told(found.table)] == [
        (0, True, "pdq", True, 5, True),
        (0, True, "image_sha256", False, 6, False),
        (0, False, None, None, 7, True),
        (1, False, None, None, 8, True),
    ]
    assert found.of_row.tolist() == [0, 1, 0, 2, 1, 2, 3, 3]
    assert found.scored.tolist() == [True] * 4
    assert found.least(np.array([9.0, 8, 7, 6, 5, np.inf, np.inf, np.inf])).tolist() == [7, 5, 6, np.inf]


def test_pictures_are_examples_as_they_are() -> None:
    split = a_split([{"cluster": k // 2, "in_overlap": k > 2, "correct": None if k else True} for k in range(5)])
    found = examples(split)
    assert found.table.to_pylist() == split.select(COLUMNS).to_pylist()
    assert found.scored.tolist() == [True, False, False, False, False]
    assert found.least(np.arange(5.0)).tolist() == [0, 1, 2, 3, 4]
    assert examples(split.slice(0, 0)).table.num_rows == 0


@pytest.mark.parametrize("seed", range(8))
def test_both_hands_agree(seed: int) -> None:
    """Videos of one to many frames that share few or many pictures, chains of them and rings; some frames without a score."""
    draws = np.random.default_rng(seed)
    n = int(draws.integers(1, 400))
    video, unscored = draws.integers(0, max(1, n // int(draws.integers(1, 9))), n), draws.random(n) < 0.2
    picture = draws.integers(0, int(n * draws.uniform(0.5, 20)) + 1, n)
    inside = draws.random(n) < 0.3
    rows = [
        {
            "group": f"v{video[k]}",
            "cluster": int(picture[k]),
            "label": int(video[k]) % 7,
            "in_overlap": bool(inside[k]),
            "method": METHODS[int(draws.integers(0, 5))] if inside[k] else None,
            "correct": None if unscored[k] else bool(video[k] % 3 == 0),
            "seen": bool(draws.random() < 0.5) if inside[k] else None,
        }
        for k in range(n)
    ]
    split = a_split(rows)
    theirs = [{name: row[name] for name in COLUMNS} for row in twin.examples(split.to_pylist())]
    number: dict[object, int] = {}
    assert told(examples(split).table) == [
        {**row, "cluster": number.setdefault(row["cluster"], len(number))} for row in theirs
    ]


def test_a_video_of_many_frames_is_quick() -> None:
    """Union without shortening its paths would take billions of steps here."""
    rows: list[twin.Row] = [
        {"group": "v", "cluster": k, "in_overlap": False, "method": None, "seen": None, "correct": True}
        for k in range(50_000)
    ]
    assert len(twin.examples(rows)) == 1


def test_frames_have_the_answer_of_their_video(tmp_path: Path) -> None:
    """Predictions in which they have not, or that are of other videos, are refused in one sentence."""
    columns = {
        "id": [f"e{k}" for k in range(6)],
        "image": [f"picture {k}".encode() for k in range(6)],
        "label": pa.array([0, 0, 1, 1, 0, 0], pa.int32()),
        "video": ["a", "a", "b", "b", "c", "c"],
    }
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    values = {"name": "clips", "path": str(tmp_path / "set.parquet"), "id": "id", "label": "label", "group": "video"}
    labelled = open_set(OverlapSet.model_validate({**values, "classes": ["no", "yes"]}))
    scores = np.eye(2, dtype=np.float32)[[0, 0, 0, 0, 1, 1]]
    table = zeroshot.prediction_table(
        labelled, np.arange(6), Answers(scores, zeroshot.rank(scores), labelled.labels, None)
    )
    place = scoring.write_predictions(str(tmp_path), labelled, table, scoring.ModelIdentity("aa" * 32, None))
    assert read_predictions(place, labelled, "hash").correct == [True, True, False, False, False, False]
    whole = pq.read_table(place)
    for name, column, said in (
        (
            "score",
            [1.0, 1.0, 1.0, 0.5, 1.0, 1.0],
            "frame 'e3' has another answer than the frames of video 'b' before it",
        ),
        ("correct", [True, True, False, False, False, True], "frame 'e5' has another answer"),
        ("group", ["a", "a", "b", "c", "c", "c"], "example 'e3' is of video 'c', in the set of 'b'"),
        ("group", [None] * 6, "example 'e0' is of video None, in the set of 'a'"),
    ):
        number = whole.column_names.index(name)
        field = whole.schema.field(name)
        pq.write_table(whole.set_column(number, field, pa.array(column, field.type)), place)
        with pytest.raises(InputError, match=said) as caught:
            read_predictions(place, labelled, "hash")
        assert len(str(caught.value).splitlines()) == 1
