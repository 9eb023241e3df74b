"""What a checkpoint had seen, against the trainer's own loader: its batches are walked, and what they show is written down."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from evaluation.overlap import corpus as corpora
from evaluation.overlap import exposure
from evaluation.overlap.exposure import Numbering, Training
from evaluation.overlap.tables import EXPOSURE_COLUMNS, PAIR_SCHEMA
from evaluation.report import exposure_check, files
from evaluation.report.schema import Corpus, Exposure
from evaluation.report.twin import Row
from pipeline.contracts import manifest as manifests
from pipeline.contracts.errors import InputError
from tests.evaluation.made import TRAINING, Made
from tests.trainer.plans import small_plan
from tests.trainer.shapes import shape_pairs, table_of
from trainer import tokenizer
from trainer.data import loader
from trainer.data.shards import ShardCorpus

ROWS, PER_SHARD, SEED = 115, 8, 11  # SEED is that of small_plan
STEPS = 7  # of 24 samples: an epoch and a half
WINDOWS = [1, 3, 512]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Fifteen shards of a row group each. One row in six has no picture, one in seven no caption, and the fourth shard nothing at all, so
    that the rows which stand in for its own come from elsewhere."""
    folder = str(tmp_path_factory.mktemp("exposure"))
    rows = table_of(shape_pairs(ROWS)).to_pylist()
    rows.sort(key=lambda row: row["uid"])
    for number, row in enumerate(rows):
        if number % 6 == 1 or number // PER_SHARD == 3:
            row["image"] = row["image_sha256"] = None
        if number % 7 == 2:
            row["caption"] = None
    table = pa.Table.from_pylist(rows, table_of([]).schema)
    manifests.write_corpus(folder, [table], rows_per_shard=PER_SHARD)
    return folder


@pytest.fixture(scope="module")
def shown(place: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[int]]:
    """By window: the row that each sample of a run shows, as the loader hands it over."""
    vocabulary = str(tmp_path_factory.mktemp("vocabulary") / "vocabulary")
    corpus = ShardCorpus(place, manifests.load(place))
    tokenizer.train_vocabulary(corpus.captions(), 600, vocabulary)
    walked: dict[int, list[int]] = {}

    def walk(window: int) -> list[int]:
        if window not in walked:
            found = [-1] * (24 * STEPS)
            for batch in loader.batches(small_plan(corpus, vocabulary, window_row_groups=window), 0, STEPS):
                by = {swap.sample: swap.by for swap in batch.replaced}
                for sample, row in zip(batch.samples.tolist(), batch.rows.tolist(), strict=True):
                    found[sample] = by.get(sample, row)
            walked[window] = found
        return walked[window]

    return walk


@dataclasses.dataclass(frozen=True)
class Tables:
    """Every row of the corpus as a pair of one example of its own, and what exposure needs beside."""

    pairs: pa.Table
    groups: pa.Table
    unusable: list[tuple[str, NDArray[np.int64]]]


@pytest.fixture(scope="module")
def tables(place: str) -> Tables:
    corpus = corpora.of_manifest(place)
    pieces: list[pa.Table] = []
    absent: list[tuple[str, NDArray[np.int64]]] = []
    for one in corpus.indexes:
        index, open_index = (
            corpora.read_index(corpus.folder, one.path, withhold=withhold) for withhold in (True, False)
        )
        assert index["caption"].null_count == index["url"].null_count == index.num_rows
        assert exposure.unusable(index).tolist() == exposure.unusable(open_index).tolist()
        n = index.num_rows
        values = {
            "set": ["all"] * n,
            **{name: open_index[name] for name in open_index.column_names if name in PAIR_SCHEMA.names},
            "shard": [one.shard] * n,
            "row": list(range(n)),
            "eval_row": [PER_SHARD * len(pieces) + row for row in range(n)],
            "eval_id": [f"{len(pieces)}-{row}" for row in range(n)],
            "captioned": open_index["captioned"],
        }
        pieces.append(pa.table(values))
        absent.append((one.shard, exposure.unusable(index)))
    return Tables(pa.concat_tables(pieces), corpus.row_groups, absent)


def training(window: int, samples: int = 0, seed: int = SEED) -> Training:
    return Training(samples, seed, window)


@pytest.mark.parametrize("window", WINDOWS)
def test_first_samples_are_those_of_the_loader(window: int, shown: Callable[[int], list[int]], tables: Tables) -> None:
    walked = shown(window)
    expected = [walked.index(row) if row in walked else None for row in range(ROWS)]
    absent = [row for row in range(ROWS) if expected[row] is None]
    assert len(absent) == sum(len(rows) for _, rows in tables.unusable) > 35, (
        "an epoch shows every row that can be used, and no other"
    )
    found = exposure.with_exposure(tables.pairs, tables.groups, tables.unusable, {"all": training(window)})
    assert found["first_sample"].to_pylist() == expected
    turns = Numbering(tables.groups).order(training(window)).first_samples(np.arange(ROWS))
    early = [row for row in range(ROWS) if expected[row] is not None and expected[row] != turns[row]]
    assert len(early) > 3, "rows that stood in for others before their own turn"


@pytest.mark.parametrize("samples", [0, 1, 40, 100, 24 * STEPS])
def test_seen_is_what_the_loader_had_shown(samples: int, shown: Callable[[int], list[int]], tables: Tables) -> None:
    found = exposure.with_exposure(tables.pairs, tables.groups, tables.unusable, {"all": training(3, samples)})
    had = set(shown(3)[:samples])
    assert found["seen"].to_pylist() == [row in had for row in range(ROWS)]


def test_sets_without_a_known_training_stay_unknown(tables: Tables) -> None:
    """And two sets by two trainings each have their own."""
    other = tables.pairs.set_column(0, "set", pa.array(["other"] * ROWS))
    blind = tables.pairs.set_column(0, "set", pa.array(["blind"] * ROWS))
    trainings = {"all": training(3, 50), "other": training(3, 50, seed=12)}
    found = exposure.with_exposure(
        pa.concat_tables([tables.pairs, other, blind]), tables.groups, tables.unusable, trainings
    )
    assert [field.name for field in EXPOSURE_COLUMNS] == found.column_names[-2:]
    first, second, third = (found.slice(start, ROWS)["first_sample"].to_pylist() for start in (0, ROWS, 2 * ROWS))
    assert first != second
    assert set(third) == {None}
    assert found.slice(2 * ROWS)["seen"].null_count == ROWS
    alone = exposure.with_exposure(other, tables.groups, tables.unusable, {"other": trainings["other"]})
    assert second == alone["first_sample"].to_pylist()


def test_an_example_is_seen_when_one_of_its_rows_was() -> None:
    pairs = pa.table(
        {
            "eval_row": [0, 0, 0, 2, 3, 3, 4],
            "first_sample": [None, 90, 70, 60, None, 40, None],
            "seen": [False, False, False, None, False, True, False],
        }
    )
    split = exposure.split_exposure(pa.table({"eval_row": [0, 1, 2, 3, 4]}), pairs)
    assert split["first_sample"].to_pylist() == [70, None, 60, 40, None]
    assert split["seen"].to_pylist() == [False, None, None, True, False]


def test_only_a_model_of_this_corpus_is_known() -> None:
    assert exposure.known(training(3), "ab", root="ab", kind="shards") == training(3)
    assert exposure.known(training(3), "cd", root="ab", kind="shards") is None
    assert exposure.known(training(3), None, root="ab", kind="shards") is None
    assert exposure.known(None, "ab", root="ab", kind="shards") is None, "a card that does not say it"
    assert exposure.known(training(3), "tars:ab", root="tars:ab", kind="webdataset") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples_seen": "-1"}, "samples_seen is '-1', no number that a model's card states; score the set again"),
        ({"seed": "\u0663"}, "seed is '\u0663', no number"),
        ({"window_row_groups": "0"}, "window_row_groups is '0', no number"),
        ({"window_row_groups": str(1 << 33)}, "window_row_groups is '8589934592', no number"),
        ({"samples_seen": "9" * 400}, "samples_seen is '9+', no number"),
        ({"seed": None}, "seed is '', no number"),
        ({"init_sha256": "somewhere"}, "init_sha256 is 'somewhere', no sha256; score the set again"),
    ],
)
def test_metadata_that_no_card_has_is_refused(change: dict[str, str | None], said: str) -> None:
    whole = Training(100, 7, 512, "ab" * 32)
    assert exposure.read_training("x.parquet", whole.metadata()) == whole
    assert exposure.read_training("x.parquet", training(1).metadata()) == training(1)
    assert exposure.read_training("x.parquet", {"format_version": "2"}) is None
    changed = {name: value for name, value in (whole.metadata() | change).items() if value is not None}
    with pytest.raises(InputError, match=said) as caught:
        exposure.read_training("x.parquet", changed)
    assert "\n" not in str(caught.value)


def test_an_index_with_more_rows_than_the_manifest_is_refused(tables: Tables) -> None:
    with pytest.raises(InputError, match=r"00000.*: row 8, the manifest lists 8 rows; rebuild the corpus"):
        Numbering(tables.groups).numbers(tables.pairs["shard"].to_pylist()[:2], np.array([7, 8]))


# ---- the second hand


ABOUT = Corpus(
    kind="shards",
    content_root="ab" * 32,
    rows=ROWS,
    shards=15,
    rows_without_hashes=0,
    rejected={},
    damaged_files=0,
    hashes={},
    config_digest=None,
)


def rows_of(tables: Tables, known: Training) -> tuple[list[Row], list[Row]]:
    pairs = exposure.with_exposure(tables.pairs, tables.groups, tables.unusable, {"all": known})
    split = exposure.split_exposure(tables.pairs.select(["eval_row", "eval_id"]), pairs)
    return pairs.to_pylist(), split.to_pylist()


@pytest.mark.parametrize("window", WINDOWS)
def test_verify_agrees(window: int, tables: Tables) -> None:
    known, groups = training(window, 60), tables.groups.to_pylist()
    pairs, split = rows_of(tables, known)
    assert exposure_check.check_row_groups(ABOUT, groups) is None
    assert list(exposure_check.check_pairs(ABOUT, pairs, split, groups, known, withheld=False)) == []
    withheld = [{**row, "caption": None} for row in pairs]
    assert list(exposure_check.check_pairs(ABOUT, withheld, split, groups, known, withheld=True)) == []


@pytest.mark.parametrize(
    ("of", "change", "said"),
    [
        ("seen", {"seen": False}, "seen is False, at 60 samples its first sample says otherwise"),
        ("unseen", {"seen": True}, "seen is True, at 60 samples"),
        ("seen", {"seen": None}, "seen is None"),
        ("seen", {"first_sample": None, "seen": False}, "first_sample is None, and the row can be trained on"),
        ("unseen", {"first_sample": 0, "seen": True}, "first_sample is 0, and the run's order shows another row there"),
        ("unseen", {"first_sample": ROWS + 5}, "the run's order shows another row there"),
        ("absent", {"first_sample": 3, "seen": True}, "first_sample is 3, and the row cannot be trained on"),
        ("absent", {"captioned": True}, "captioned is True, its caption says False"),
        ("seen", {"row": PER_SHARD}, "is no row of the row groups"),
        ("seen", {"row": -1}, "is no row of the row groups"),
        ("seen", {"shard": "other"}, "is no row of the row groups"),
    ],
)
def test_a_forged_row_is_named(of: str, change: dict[str, object], said: str, tables: Tables) -> None:
    known, groups = training(3, 60), tables.groups.to_pylist()
    pairs, split = rows_of(tables, known)
    kinds: dict[str, Callable[[Row], bool]] = {
        "seen": lambda row: row["seen"] is True,
        "unseen": lambda row: not row["seen"] and row["first_sample"] is not None,
        "absent": lambda row: row["caption"] is None,
    }
    number = next(number for number, row in enumerate(pairs) if kinds[of](row))
    pairs[number] = {**pairs[number], **change}
    problems = list(exposure_check.check_pairs(ABOUT, pairs, split, groups, known, withheld=False))
    assert any(said in problem and f"'{pairs[number]['eval_id']}'" in problem for problem in problems), problems


def test_what_cannot_be_known_must_not_be_said(tables: Tables) -> None:
    pairs, split = rows_of(tables, training(3, 60))
    problems = list(exposure_check.check_pairs(ABOUT, pairs, split, tables.groups.to_pylist(), None, withheld=False))
    assert len(problems) == 1
    assert "says what was seen, and no training over this corpus is known" in problems[0]


def test_another_cut_of_the_rows_is_another_order(tables: Tables) -> None:
    """Of the same rows in other row groups: the table is whole, and the pairs do not follow from it."""
    pairs, split = rows_of(tables, training(3, 60))
    groups = tables.groups.to_pylist()
    halves = [{**group, "rows": group["rows"] // 2 + part * (group["rows"] % 2)} for group in groups for part in (0, 1)]
    assert exposure_check.check_row_groups(ABOUT, halves) is None
    assert any(
        "shows another row there" in problem
        for problem in exposure_check.check_pairs(ABOUT, pairs, split, halves, training(3, 60), withheld=False)
    )
    assert exposure_check.check_row_groups(ABOUT, groups[1:]) == "lists 107 rows, report.json says 115"
    swapped = [groups[0], {**groups[1], "shard": "z"}, {**groups[2], "shard": groups[0]["shard"]}, *groups[3:]]
    assert "or one in two places" in str(exposure_check.check_row_groups(ABOUT, swapped))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("samples_seen",), 91),
        (("seed",), 6),
        (("window_row_groups",), 3),
        (("init_sha256",), "00" * 32),
        (("share", "n"), 18),
        (("share", "high"), 0.99),
        (("corpus_rows",), 0),
        (("seen", "n"), 0),
        (("unseen", "hits"), 0),
        (("seen_units", "low"), 0.01),
        (("unseen_units", "n"), 0),
        (("difference", "high"), 0.01),
        (("difference",), None),
    ],
)
def test_a_forged_figure_is_named(made: Made, path: tuple[str, ...], value: object) -> None:
    report = files.read_report(str(made.report))
    pairs, split = (pq.read_table(made.report / name).to_pylist() for name in (files.PAIRS, files.split_name("scenes")))
    own, one = [row for row in pairs if row["set"] == "scenes"], report.sets[0]
    assert one.exposure is not None
    assert list(exposure_check.check_figures("report.json", report, one, own, split, TRAINING)) == []
    values = one.exposure.model_dump()
    place = values
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    forged = one.model_copy(update={"exposure": Exposure.model_validate(values)})
    problems = list(exposure_check.check_figures("report.json", report, forged, own, split, TRAINING))
    assert any(f"sets.scenes.exposure.{'.'.join(path)}" in problem for problem in problems), problems


def test_an_exposure_that_is_left_out_is_named(made: Made) -> None:
    report = files.read_report(str(made.report))
    without = report.sets[0].model_copy(update={"exposure": None})
    (problem,) = exposure_check.check_figures("report.json", report, without, [], [], TRAINING)
    assert "sets.scenes.exposure is left out" in problem
