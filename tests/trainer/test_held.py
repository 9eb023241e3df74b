"""Evaluation while training: its figures against naive twins, on any number of processes and under every stage, and without a trace."""

import hashlib
import json
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from evaluation import retrieval
from evaluation import zeroshot as protocol
from evaluation.metrics import Answers
from pipeline.content import image as images
from pipeline.contracts import manifest as manifests
from pipeline.contracts.errors import InputError
from tests.trainer.conftest import WriteCorpus
from tests.trainer.held_cases import ALONE, CASES, LIMIT, PIXEL_MEAN, PIXEL_STD, Case, cases, config_of, model_of
from tests.trainer.launching import INSTRUMENTED, Alone, errors_of, together, together_module
from tests.trainer.shapes import COLOURS
from trainer import checkpoint, held, tokenizer
from trainer.check import describe
from trainer.config import HeldConfig
from trainer.curve import draw, read_lines
from trainer.data.shards import ShardCorpus
from trainer.data.transforms import evaluation_pixels, normalise
from trainer.held import scores
from trainer.held.comparing import known_in
from trainer.held.pairs import marks_of

pytestmark = pytest.mark.timeout(900)
WORLDS = [2, pytest.param(1, marks=pytest.mark.prove), pytest.param(3, marks=pytest.mark.prove)]
Shapes = Callable[..., list[tuple[str | None, bytes | None]]]
Floats = npt.NDArray[np.float64]


# ---- the arithmetic


def naive_recall(scored: Floats, right: npt.NDArray[np.bool_], k: int) -> float:
    """Sort the candidates of each query, the wrong ones first among equals, and look among the first k."""
    found = 0
    for row, is_right in zip(scored, right, strict=True):
        order = np.lexsort((is_right, -row))
        found += bool(is_right[order[:k]].any())
    return found / len(scored)


def our_recall(queries: Tensor, candidates: Tensor, pairs: Tensor, k: int) -> float:
    right = scores.relation(pairs)
    blocks = scores.blocks(len(queries), len(candidates))
    return float((torch.cat([scores.ranks(queries, candidates, right, block) for block in blocks]) < k).double().mean())


@pytest.mark.parametrize("block", [1 << 24, 100])
def test_recall_is_what_sorting_gives_with_ties_and_several_right_ones(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "_BLOCK_SCORES", block)
    draws = np.random.default_rng(0)
    queries, candidates = (draws.integers(-1, 2, (count, 4)).astype(float) for count in (31, 43))  # many ties
    right = draws.random((31, 43)) < 0.05
    right[np.arange(31), draws.integers(0, 43, 31)] = True
    pairs = torch.from_numpy(np.argwhere(right))
    pairs = torch.cat([pairs.flip(0), pairs[:9]])  # in any order, and repeated
    tensors = torch.from_numpy(queries), torch.from_numpy(candidates)
    scored = queries @ candidates.T
    recalls = [our_recall(*tensors, pairs, k) for k in (1, 5, 10)]
    assert recalls == [naive_recall(scored, right, k) for k in (1, 5, 10)]
    assert 0 < recalls[0] < recalls[1] < recalls[2] < 1
    same = torch.ones(31, 4), torch.ones(43, 4)
    assert our_recall(*same, torch.arange(31)[:, None].repeat(1, 2), 10) == 0, "one score for all finds nothing"


def test_figures_are_those_of_evaluation() -> None:
    """The commands and the run score alike: captions shared by pictures, several of one picture, a pair twice, ties between classes,
    classes without an example.
    """
    draws = np.random.default_rng(1)
    captions = [f"caption {number}" for number in draws.integers(0, 30, 90)]
    digests = [f"digest {number}" for number in draws.integers(0, 50, 89)]
    captions, digests = [*captions, captions[0]], [*digests, digests[1], digests[0]]
    names, text_of_row = retrieval.distinct(captions)
    different, picture_of_row = retrieval.distinct(digests)
    features = [draws.integers(-2, 3, (count, 3)).astype(np.float32) for count in (len(different), len(names))]
    theirs = retrieval.retrieve(features[0], features[1], digests, captions)
    pairs = torch.from_numpy(np.stack([picture_of_row, text_of_row], axis=1))
    pictures, texts = (torch.from_numpy(one) for one in features)
    assert max(np.bincount(picture_of_row)) > 2
    assert max(np.bincount(text_of_row)) > 2
    for expected in theirs.image_to_text:
        assert our_recall(pictures, texts, pairs, expected.k) == expected.value
        assert scores.chance(len(names), scores.relation(pairs), expected.k) == pytest.approx(expected.chance)
    for expected in theirs.text_to_image:
        assert our_recall(texts, pictures, pairs.flip(1), expected.k) == expected.value
        assert scores.chance(len(different), scores.relation(pairs.flip(1)), expected.k) == pytest.approx(
            expected.chance
        )

    features[0] = draws.integers(-2, 3, (50, 3)).astype(np.float32)
    pictures = torch.from_numpy(features[0])
    labels = draws.integers(0, 7, 50).astype(np.int32)
    weights = draws.integers(-2, 3, (9, 3)).astype(np.float32)
    cosines = features[0] @ weights.T
    answers = Answers(cosines, protocol.rank(cosines), labels)
    expected_scores = protocol.summarise(answers, [str(number) for number in range(9)])
    assert expected_scores.mean_per_class is not None
    ours = scores.zeroshot(pictures, torch.from_numpy(weights), torch.from_numpy(labels.astype(np.int64)))
    assert ours == {
        "zeroshot_top1": pytest.approx(expected_scores.top1.value),
        "zeroshot_top5": pytest.approx(expected_scores.top5.value),
        "zeroshot_mean_per_class": pytest.approx(expected_scores.mean_per_class.value),
    }


# ---- indexes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.select(["caption"]), "column 'uid' is not there, a corpus has fixed_size_binary"),
        (lambda table: table.drop_columns(["source_sha256"]), "column 'source_sha256' is not there"),
        (lambda table: retyped(table, pa.string(), "x"), "column 'uid' is string, a corpus has fixed_size_binary"),
        (lambda table: retyped(table, pa.binary(), b"abc"), "column 'uid' is binary, a corpus has"),
        (lambda table: retyped(table, pa.int64(), 5), "column 'uid' is int64, a corpus has"),
        (lambda table: table.slice(1), "has 9 rows, the manifest says 10; run `python -m pipeline verify"),
    ],
)
def test_an_index_that_is_none_is_refused_and_not_taken_for_one_that_holds_nothing(
    tmp_path: Path, write_corpus: WriteCorpus, shapes: Shapes, change: Callable[[pa.Table], pa.Table], said: str
) -> None:
    found = write_corpus(tmp_path, shapes(10))
    (shard,) = found.shards
    corpus = ShardCorpus(str(tmp_path), found)
    index = tmp_path / shard.index_path
    table = pq.read_table(index)
    digest = table["image_sha256"][3].as_py()
    assert known_in(str(tmp_path), shard, {digest, bytes(32)}) == {digest}
    assert marks_of(corpus, 3, 5) == [[uid] for uid in table["uid"].to_pylist()[3:5]]
    pq.write_table(change(table), index)
    for look in (lambda: known_in(str(tmp_path), shard, {digest}), lambda: marks_of(corpus, 3, 5)):
        with pytest.raises(InputError, match=f"{index}: {said}"):
            look()


def retyped(table: pa.Table, kind: pa.DataType, value: object) -> pa.Table:
    return table.set_column(table.schema.get_field_index("uid"), "uid", pa.array([value] * len(table), kind))


# ---- processes, stages, precisions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_corpus: WriteCorpus, shapes: Shapes) -> Path:
    """A training corpus, held pairs with every peculiarity, a labelled set, and held sets that cannot be used."""
    place = tmp_path_factory.mktemp("held")
    drawn = shapes(20, seed=5)
    pairs: list[tuple[str | None, bytes | None]] = []
    for number, (caption, picture) in enumerate(drawn):
        pairs.append((f"held: {caption}", picture))
        if number % 3 == 0:
            pairs.append((f"number {number}", picture))  # several captions of one picture
        if number in (1, 2, 3):
            pairs.append(("one of three", picture))  # one caption of several pictures
    pairs += [
        (None, drawn[4][1]),
        ("  ", drawn[5][1]),
        ("no picture", None),
        ("broken", b"\x89PNG\r\n\x1a\nno picture"),
    ]
    write_corpus(place / "held", pairs, rows_per_shard=7)
    known = [("seen", drawn[3][1]), ("seen again", drawn[3][1]), ("seen too", drawn[7][1])]
    labelled = [(caption, picture) for caption, picture in shapes(72, seed=9) if caption is not None][::4]
    write_corpus(place / "corpus", [*shapes(40, seed=1), *known, ("a test picture", labelled[2][1])], rows_per_shard=9)
    colours = [next(colour for colour in COLOURS if colour in caption) for caption, _ in labelled]
    table = pa.table({"image": [picture for _, picture in labelled] + [drawn[0][1]], "label": [*colours, None]})
    pq.write_table(table, place / "labelled.parquet", row_group_size=4)
    write_corpus(place / "empty_rows", [(None, drawn[4][1]), (None, drawn[5][1])])
    write_corpus(place / "damaged", pairs, rows_per_shard=7)
    shard = sorted(path for path in (place / "damaged").glob("*.parquet") if "index" not in path.name)[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    texts = [caption for caption, _ in (*pairs, *shapes(40, seed=1)) if caption is not None]
    tokenizer.train_vocabulary(texts, 600, str(place / "vocabulary"))
    return place


@pytest.fixture(scope="module")
def launched(folder: Path) -> Callable[[int], dict[str, Any]]:
    """What each case found on a number of processes; one launch each."""
    known: dict[int, dict[str, Any]] = {}

    def run(world: int) -> dict[str, Any]:
        if world not in known:
            finished = together_module(world, "tests.trainer.held_cases", str(folder), timeout=800)
            assert finished.code == 0, finished.output[-4000:]
            known[world] = torch.load(folder / f"found-{world}.pt", weights_only=False)  # written by the line above
            known[world]["output"] = finished.output
        return known[world]

    return run


class Twin:
    """The same sets, read with nothing of the module under test, a picture and a text at a time, by a model that is given weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        place = folder / "held"
        found = manifests.load(str(place))
        rows = pa.concat_tables([pq.read_table(place / shard.path) for shard in found.shards]).to_pylist()
        usable = [(row["caption"], row["image"]) for row in rows if self.usable(row)]
        self.first_pictures = list(dict.fromkeys(row["image"] for row in rows[:LIMIT] if self.usable(row)))
        self.pictures = list(dict.fromkeys(image for _, image in usable))
        self.texts = list(dict.fromkeys(caption for caption, _ in usable))
        self.right = np.array([[(text, picture) in usable for text in self.texts] for picture in self.pictures])
        labelled = pq.read_table(folder / "labelled.parquet").to_pylist()[:-1]
        self.classes = sorted({row["label"] for row in labelled})
        self.labelled = [row["image"] for row in labelled]
        self.labels = np.array([self.classes.index(row["label"]) for row in labelled])
        self.prompts = [text for name in self.classes for text in (f"a {name}", f"one {name} on a ground")]

    @staticmethod
    def usable(row: dict[str, Any]) -> bool:
        return row["image"] is not None and row["caption"] not in (None, "  ", "broken")

    @torch.no_grad()
    def features(self, case: Case, weights: dict[str, Tensor]) -> list[tuple[Floats, Floats]]:
        config = config_of(case, self.folder)
        model = model_of(config, self.folder).eval()
        model.load_state_dict(weights)
        ids = tokenizer.load("bpe", vocab=str(self.folder / "vocabulary"), context_length=16)

        def of_picture(data: bytes) -> Tensor:
            pixels = evaluation_pixels(images.decode(data).rgb, 32)
            return model.encode_image(normalise(torch.from_numpy(pixels)[None], PIXEL_MEAN, PIXEL_STD))[0]

        def unit(rows: Sequence[Tensor]) -> Floats:
            stacked = torch.stack(list(rows)).double().numpy()
            lengths: Floats = np.linalg.norm(stacked, axis=1, keepdims=True)
            return stacked / lengths

        return [
            (unit([of_picture(data) for data in pictures]), unit([model.encode_text(ids([text]))[0] for text in texts]))
            for pictures, texts in ((self.pictures, self.texts), (self.labelled, self.prompts))
        ]

    def figures(self, features: Sequence[tuple[Floats, Floats]]) -> dict[str, float]:
        scored = features[0][0] @ features[0][1].T
        found = {f"image_to_text_r{k}": naive_recall(scored, self.right, k) for k in (1, 5, 10)}
        found |= {f"text_to_image_r{k}": naive_recall(scored.T, self.right.T, k) for k in (1, 5, 10)}
        means = features[1][1].reshape(len(self.classes), 2, -1).mean(axis=1)
        order = np.argsort(-(features[1][0] @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T), axis=1)
        hits = order[:, 0] == self.labels
        of_class = [hits[self.labels == number].mean() for number in range(len(self.classes))]
        return found | {
            "zeroshot_top1": hits.mean(),
            "zeroshot_top5": (order[:, :5] == self.labels[:, None]).any(axis=1).mean(),
            "zeroshot_mean_per_class": float(np.mean(of_class)),
        }


@pytest.fixture(scope="module")
def twin(folder: Path) -> Twin:
    found = Twin(folder)
    assert len(found.pictures) == 20
    assert found.right.sum() == 20 + 7 + 3
    assert (len(found.labelled), len(found.classes)) == (18, 6)
    return found


def as_arrays(features: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Floats, Floats]]:
    return [(pictures.double().numpy(), texts.double().numpy()) for pictures, texts in features]


@pytest.mark.parametrize("world", WORLDS)
def test_figures_are_those_of_a_naive_twin(world: int, launched: Callable[[int], dict[str, Any]], twin: Twin) -> None:
    for case in cases(world):
        found = launched(world)[str(tuple(case))]
        features = as_arrays(found["features"])
        limit = 1e-5 if case.compute == "fp32" else 0.1
        for ours, theirs in zip(features, twin.features(case, found["weights"]), strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert np.abs(one - other).max() < limit, case
        assert found["scored"]["held"] == pytest.approx(twin.figures(features), abs=1e-12), case
        assert all(0 < value < 1 for value in found["scored"]["held_chance"].values())
        assert found["next_loss"] > 0


@pytest.mark.parametrize("world", WORLDS)
def test_the_average_is_scored_in_the_weights_place(
    world: int, launched: Callable[[int], dict[str, Any]], twin: Twin
) -> None:
    for case in cases(world):
        found = launched(world)[str(tuple(case))]
        weights, averaged = found["weights"], found["average"]
        assert not torch.equal(averaged["text_projection"], weights["text_projection"]), case
        if case.compute == "fp32":
            expected = twin.figures(twin.features(case, averaged))
            assert found["scored"]["held_ema"] == pytest.approx(expected, abs=1e-12), case
        if case.stage == 0:
            true = found["true_average"]
            assert all(torch.equal(averaged[name], tensor) for name, tensor in true.items())
            assert true.keys() == {name for name in weights if "running" not in name and "num_batches" not in name}


@pytest.mark.parametrize("world", WORLDS)
def test_looking_changes_nothing(world: int, launched: Callable[[int], dict[str, Any]]) -> None:
    """Weights, masters, their average, gradients, batch statistics, modes and random states of every process, to the bit."""
    for changed in launched(world)["changed"]:
        assert changed == {str(tuple(case)): [] for case in cases(world)}


@pytest.mark.prove
def test_processes_and_stages_give_the_same(launched: Callable[[int], dict[str, Any]]) -> None:
    """The same weights on one process and on two have the same features, to the bit; other stages the same figures."""
    for case in ALONE:
        one, two = (launched(world)[str(tuple(case))] for world in (1, 2))
        for ours, theirs in zip(one["first_features"], two["first_features"], strict=True):
            assert torch.equal(ours[0], theirs[0]), case
            assert torch.equal(ours[1], theirs[1]), case
        assert one["first"]["held"] == two["first"]["held"], case
    for case in CASES:
        if case.compute == "fp32":
            one, two = launched(1)[str(tuple(Case(1, preset=case.preset)))], launched(2)[str(tuple(case))]
            assert one["first"]["held"] == two["first"]["held"], case


def test_texts_are_computed_as_long_as_the_longest_of_their_piece(launched: Callable[[int], dict[str, Any]]) -> None:
    """Of 16 places. The four pieces of captions come by rising length, dealt to the processes in turn."""
    for case in CASES:
        one, two = launched(2)[str(tuple(case))]["text lengths"]
        lengths = [one[0], two[0], one[1], two[1]]
        assert lengths == sorted(lengths), case
        assert 3 <= lengths[0] < lengths[-1] < 16, (case, lengths)


def test_features_that_are_no_numbers_have_no_score(launched: Callable[[int], dict[str, Any]]) -> None:
    """Every comparison with them is false, so that a broken model would find everything."""
    assert set(launched(2)[str(tuple(Case(0)))]["broken"]["held"].values()) == {None}


def test_what_cannot_be_used_is_said_by_all_and_what_is_trained_on_is_counted(
    launched: Callable[[int], dict[str, Any]],
) -> None:
    found = launched(2)
    assert len(found["damaged"]) == len(found["empty_rows"]) == 2
    for said in found["damaged"]:
        assert "damaged" in said
        assert "not a readable Parquet file" in said
    for said in found["empty_rows"]:
        assert said.startswith("held.manifest: none of the 2 rows of")
        assert "(row 0: no caption); name a corpus of pictures with captions" in said
    assert "held.manifest: 2 of its 20 pictures are in the training corpus too" in found["output"]
    assert "held.zeroshot: 1 of its 18 pictures are in the training corpus too" in found["output"]
    assert "held: 4 of 34 rows of" in found["output"]


def test_a_limit_takes_rows_of_the_pairs_and_pictures_of_a_labelled_set_by_their_digests(
    launched: Callable[[int], dict[str, Any]], twin: Twin
) -> None:
    """The first rows of a corpus are a fair sample; a labelled set is often ordered by class."""
    pairs, labelled = launched(2)["limited"]
    assert pairs == twin.first_pictures
    taken = sorted(twin.labelled, key=lambda data: hashlib.sha256(data).digest())[:LIMIT]
    assert labelled == [data for data in twin.labelled if data in taken]
    assert len({label for data, label in zip(twin.labelled, twin.labels, strict=True) if data in taken}) > 2


def test_what_lies_in_the_padding_of_a_partition_reaches_nothing(launched: Callable[[int], dict[str, Any]]) -> None:
    """It was made NaN before the first step: no gradient's norm, no weight or moment and no checkpoint has it."""
    found = launched(2)[str(tuple(Case(3)))]
    assert found["saved padding"], "the case has none"
    assert all(torch.equal(value, torch.zeros_like(value)) for value in found["saved padding"])
    assert all(bool(weight.isfinite().all()) for weight in (*found["weights"].values(), *found["average"].values()))
    assert all(np.isfinite(found[name]) for name in ("next_loss", "norm"))


# ---- the command


def test_what_is_not_there_is_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/manifest\.json: no such file"):
        held.find(HeldConfig(manifest=str(tmp_path / "nowhere")))
    shutil.copytree(folder / "held", tmp_path / "other")
    path = tmp_path / "other" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(InputError, match="format version 99, this program reads"):
        held.find(HeldConfig(manifest=str(tmp_path / "other")))
    zeroshot = {"path": str(tmp_path / "none.parquet"), "label": "label"}
    with pytest.raises(InputError, match=r"held\.zeroshot\.path: .*none\.parquet': nothing there; name a Parquet file"):
        held.find(HeldConfig.model_validate({"zeroshot": zeroshot}))
    config = config_of(Case(1), folder)
    assert f"held         {folder}/held/manifest.json and {folder}/labelled.parquet, every 1,000 steps" in describe(
        config, 1
    )
    assert "held         MISSING" in describe(config_of(Case(1), folder, "nowhere"), 1)


def test_a_damaged_held_set_ends_the_run_before_its_first_step(
    alone: Alone, short_run: dict[str, object], folder: Path, tmp_path: Path
) -> None:
    finished = alone(short_run | {"run.dir": tmp_path, "held.manifest": folder / "damaged"})
    assert finished.code == 2, finished.output
    (said,) = errors_of(finished.output)
    assert "not a readable Parquet file" in said
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "metrics.jsonl").exists() is False


def test_a_run_that_is_looked_at_is_the_run_that_is_not(
    alone: Alone, short_run: dict[str, object], trained: Path, folder: Path, tmp_path: Path
) -> None:
    """Ended amid two evaluations and resumed besides, with nothing lost: the same weights, moments and random states to the bit, one line
    for each evaluation, and a drawing."""
    run = tmp_path / "run"
    change = {"held.manifest": folder / "held", "held.limit": 20, "held.every": 4, "run.dir": run}

    told = short_run | change | {"run.save_every": 100}
    finished = together(1, told, module=INSTRUMENTED, environment={"SIGTERM_AMID_HELD": "0:0-0"})
    assert finished.code == 128 + signal.SIGTERM, finished.output
    assert "told to end (SIGTERM): step 4 is saved" in finished.output
    assert [line["step"] for line in read_lines(str(run)) if "held" in line] == []

    finished = together(1, short_run | change, module=INSTRUMENTED, environment={"WRONG_HELD": "0:1-1"})
    assert finished.code == 2, finished.output
    assert errors_of(finished.output) == ["error: evaluation 1 of process 0 is wrong; that is what the test wants"]
    assert checkpoint.complete_tags(str(run / "checkpoints")) == ["step-00000006", "step-00000004"]
    assert [line["step"] for line in read_lines(str(run)) if "held" in line] == [4], "that of step 4 was done first"

    finished = alone(short_run | change)
    assert finished.code == 0, finished.output
    assert "no steps left: the run is at step 6 of 6" in finished.output
    lines = read_lines(str(tmp_path / "run"))
    scored = [line for line in lines if "held" in line]
    assert [line["step"] for line in scored] == [4, 6]
    for line in scored:
        assert {f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)} == line["held"].keys()
        assert line["held"].keys() == line["held_chance"].keys()
        assert "held_ema" not in line
        assert line["held_seconds"] > 0
    assert "step 6: held image_to_text_r1" in finished.output
    steps = [line for line in lines if "loss" in line]
    unseen = read_lines(str(trained))
    assert [(line["step"], line["loss"], line["gradient_norm"]) for line in steps] == [
        (line["step"], line["loss"], line["gradient_norm"]) for line in unseen
    ]
    records = [
        json.loads((run / "checkpoints/step-00000006/checkpoint.json").read_text())
        for run in (tmp_path / "run", trained)
    ]
    assert records[0]["files"] == records[1]["files"]
    assert records[0]["config_digest"] == records[1]["config_digest"]

    draw([str(tmp_path / "run"), str(trained)], str(tmp_path / "curve.svg"))
    drawing = (tmp_path / "curve.svg").read_text()
    for words in ("loss", "learning rate", "picture → text, R@1", "text → picture, R@1", "step", ">run<"):
        assert words in drawing
    assert "zero-shot" not in drawing


def test_curves_of_what_is_no_run_are_refused(tmp_path: Path) -> None:
    for text, out, said in (
        (None, "a.svg", "metrics.jsonl: no such file; give the run.dir"),
        ("nonsense\n", "a.svg", "not the metrics of a training run"),
        ('{"step": 1, "loss": 2.0', "a.svg", "has no step yet"),
        ('{"step": 1, "loss": 2.0}\n', "a.svg", "has no step yet"),
        ("[]\n1\n", "a.svg", "not the metrics of a training run .line 1 is none."),
        ("[" * 100_000 + "\n", "a.svg", "not the metrics of a training run"),
        ('{"step": 1, "loss": "x", "learning_rate": 1}\n', "a.svg", "not the metrics of a training run"),
        (None, "a.jpg", "--out: '.*a.jpg' does not end in .svg, .png, .pdf"),
    ):
        if text is not None:
            (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(InputError, match=said):
            draw([str(tmp_path)], str(tmp_path / out))


def test_a_curve_has_every_run_by_name_and_leaves_out_what_a_power_cut_broke(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the scores of the average are dashed, guessing is dotted: of one score of two runs there are one and two such lines."""
    names = ("_old", "cost$_$")
    scored: dict[str, object] = {"step": 2, "held": {"zeroshot_top1": 0.5}, "held_chance": {"zeroshot_top1": 0.1}}
    steps = [{"step": step, "loss": 3.0 - step, "learning_rate": 0.1} for step in (1, 2)]
    broken = ["\0\0\0", "[]", "1", '{"step": 3, "held": null}', '{"step": 3, "held": []}']
    for name, more in zip(names, ({}, {"held_ema": {"zeroshot_top1": 0.6}}), strict=True):
        (tmp_path / name).mkdir()
        lines = [*broken, *(json.dumps(line) for line in (*steps, scored | more, {**scored, "step": 3} | more))]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    draw([str(tmp_path / name) for name in names], str(tmp_path / "curve.svg"))
    drawing = (tmp_path / "curve.svg").read_text()
    for name in names:
        assert f">{name}<" in drawing
        assert f"{name}/metrics.jsonl: 5 of its lines are broken and left out, the first is line 1" in caplog.text
    patterns = re.findall(r"stroke-dasharray: *([\d.]+),([\d.]+)", drawing)
    dashed = [pattern for pattern in patterns if float(pattern[0]) > float(pattern[1])]
    assert (len(dashed), len(patterns) - len(dashed)) == (1, 2)
