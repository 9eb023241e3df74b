"""From labels to thresholds: planted answers, a second hand on random ones, and every bad line refused; by distances and by scores."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evaluation.overlap.measures import DESCRIPTOR, PDQ, Measure
from evaluation.overlap.tables import LABEL_SCHEMA, NEAREST_SCHEMA
from evaluation.overlap.thresholds import Calibration, calibrate, kappa, read_labels
from evaluation.report import twin
from pipeline.contracts.errors import InputError


def nearest(distances: list[int], scores: list[float] | None = None) -> pa.Table:
    """By PDQ, or by the descriptor where there are scores."""
    rows = [
        {
            "set": "digits",
            "eval_row": row,
            "eval_id": f"e{row}",
            "measure": "pdq" if scores is None else "descriptor",
            "pdq_distance": distance,
            "descriptor_score": None if scores is None else scores[row],
            "uid": row.to_bytes(16),
            "shard": "shard",
            "row": row,
            "pdq256": bytes(32),
            "pdq_quality": 100,
        }
        for row, distance in enumerate(distances)
    ]
    return pa.Table.from_pylist(rows, NEAREST_SCHEMA)


def answered(closest: pa.Table, answers: dict[int, str], rater: str = "Ada") -> pa.Table:
    rows = [
        {**row, "rater": rater, "answer": answers[row["eval_row"]]}
        for row in closest.to_pylist()
        if row["eval_row"] in answers
    ]
    return pa.Table.from_pylist(rows, LABEL_SCHEMA)


def calibrated(labels: pa.Table, closest: pa.Table, measure: Measure = PDQ) -> Calibration:
    found = calibrate(labels, closest, measure)
    assert found is not None
    return found


def test_everything_labelled_is_plain_counting() -> None:
    closest = nearest([2] * 50 + [20] * 50 + [40] * 10 + [90] * 30)
    labels = answered(closest, {row: "same" if row < 100 else "different" for row in range(140)})
    found = calibrated(labels, closest)
    assert [(point.threshold, point.answers, point.precision, point.recall) for point in found.curve] == [
        (2, 50, 1.0, 0.5),
        (20, 100, 1.0, 1.0),
        (40, 110, pytest.approx(100 / 110), 1.0),
        (90, 140, pytest.approx(100 / 140), 1.0),
    ]
    assert found.curve[0].precision_low == pytest.approx(0.05 ** (1 / 50)), (
        "all of 50: Clopper and Pearson's closed form"
    )
    assert found.curve[1].precision_low == pytest.approx(0.05 ** (1 / 100))
    assert (found.chosen, found.band, found.kappa) == (20, (20, 20), None)


def test_too_few_labels_choose_nothing() -> None:
    closest = nearest([0] * 58)
    assert calibrated(answered(closest, dict.fromkeys(range(58), "same")), closest).chosen is None
    closest = nearest([0] * 59)
    assert calibrated(answered(closest, dict.fromkeys(range(59), "same")), closest).chosen == 0


def test_an_answer_stands_for_its_bin() -> None:
    """900 near ones of which 9 are asked, 100 far ones of which 100 are: without weights precision would be 9 of 109."""
    closest = nearest([1] * 900 + [60] * 100)
    labels = answered(closest, {**dict.fromkeys(range(9), "same"), **dict.fromkeys(range(900, 1000), "different")})
    found = calibrated(labels, closest)
    assert found.curve[-1].precision == pytest.approx(0.9)
    assert found.curve[-1].precision_low < 0.9


def test_a_score_is_a_distance_read_backwards() -> None:
    """The same answers by scores that lack as many thousandths of 1 as the distances have bits: the same figures, the choice read so."""
    draws = np.random.default_rng(4)
    distances = sorted(draws.integers(0, 49, 200).tolist())
    answers = {row: "same" if distance < 40 or row % 2 else "different" for row, distance in enumerate(distances)}
    closest, scored = nearest(distances), nearest([7] * 200, [(1000 - distance) / 1000 for distance in distances])
    found = calibrated(answered(closest, answers), closest)
    again = calibrated(answered(scored, answers), scored, DESCRIPTOR)
    assert [(1000 - point.threshold) / 1000 for point in found.curve] == [point.threshold for point in again.curve]
    for one, other in zip(found.curve, again.curve, strict=True):
        assert (one.answers, one.precision_low, one.recall_low) == (
            other.answers,
            other.precision_low,
            other.recall_low,
        )
    assert found.chosen is not None
    assert again.chosen == (1000 - found.chosen) / 1000
    assert found.band is not None
    assert again.band == tuple((1000 - end) / 1000 for end in found.band)
    both = (
        pa.concat_tables([closest, scored]),
        pa.concat_tables([answered(closest, answers), answered(scored, answers)]),
    )
    assert calibrated(both[1], both[0]) == found, "an answer counts for the measure that chose the pair"
    assert calibrated(both[1], both[0], DESCRIPTOR) == again
    assert calibrate(answered(closest, answers), both[0], DESCRIPTOR) is None


def test_a_score_counts_under_the_strictest_threshold_that_it_reaches() -> None:
    """`score >= threshold`, as the search has it, for every threshold of three digits; nothing is chosen that cannot be set."""
    thresholds = [level / 1000 for level in range(1001)]
    around = [
        *thresholds,
        *np.nextafter(thresholds, -9).tolist(),
        *np.nextafter(thresholds, 9).tolist(),
        -0.7,
        0.0,
        1.7,
    ]
    for score, steps in zip(around, DESCRIPTOR.steps(np.array(around)).tolist(), strict=True):
        reached = [threshold for threshold in thresholds if score >= threshold]
        assert DESCRIPTOR.value(steps) == max(reached, default=0.0)
        assert twin.distance({"descriptor_score": score}, "descriptor") == steps
    scored = nearest([0] * 200, [0.5] * 100 + [-0.2] * 100)
    found = calibrated(answered(scored, dict.fromkeys(range(200), "same")), scored, DESCRIPTOR)
    assert ([point.threshold for point in found.curve], found.chosen, found.band) == ([0.5, 0.0], 0.5, (0.0, 0.0))
    far = nearest([100] * 100 + [140] * 100)
    found = calibrated(answered(far, dict.fromkeys(range(200), "same")), far)
    assert (found.curve[-1].precision, found.chosen) == (1.0, 100)


def test_raters_must_agree() -> None:
    closest = nearest([0, 0, 0, 0])
    one = answered(closest, {0: "same", 1: "same", 2: "different", 3: "same"})
    other = answered(closest, {0: "same", 1: "unsure", 2: "different", 3: "same"}, "Bo")
    found = calibrated(pa.concat_tables([one, other]), closest)
    assert (found.raters, found.answers, found.curve[0].precision) == (["Ada", "Bo"], 4, 0.5)
    assert found.kappa == pytest.approx((0.75 - 0.5) / 0.5)
    assert kappa([{"Ada": "same", "Bo": "same"}]) is None, "two who always say the same agree by chance alone"


@pytest.mark.parametrize(
    ("seed", "measure"), [*((seed, PDQ) for seed in range(20)), *((seed, DESCRIPTOR) for seed in range(5))]
)
def test_the_second_hand_agrees(seed: int, measure: Measure) -> None:
    draws = np.random.default_rng(seed)
    distances = sorted(draws.integers(0, 100, 300).tolist())
    scores = (1.0001 - np.array(distances) / draws.uniform(80, 200) + draws.normal(0, 0.005, 300)).round(2).tolist()
    closest = nearest(distances, None if measure is PDQ else scores)
    tables = []
    for rater in ("Ada", "Bo", "Cy")[: 1 + seed % 3]:
        chosen = draws.choice(300, int(draws.integers(1, 200)), replace=False).tolist()
        says = {row: str(draws.choice(["same", "different", "unsure"], p=[0.7, 0.2, 0.1])) for row in chosen}
        tables.append(
            answered(closest, {row: "same" if distances[row] < 20 else said for row, said in says.items()}, rater)
        )
    labels = pa.concat_tables(tables)
    found = calibrated(labels, closest, measure)
    again = twin.calibration(labels.to_pylist(), closest.to_pylist(), measure.name)
    assert (found.raters, found.answers, found.chosen, found.band) == tuple(
        again[key] for key in ("raters", "answers", "chosen", "band")
    )
    assert found.kappa == pytest.approx(again["kappa"], abs=1e-12)
    assert len(found.curve) == len(again["curve"])
    for point, row in zip(found.curve, again["curve"], strict=True):
        assert point.threshold == row.pop(measure.kind)
        for key, value in row.items():
            assert getattr(point, key) == pytest.approx(value, abs=1e-9), key


GOOD = {"set": "digits", "eval_id": "e1", "uid": (1).to_bytes(16).hex(), "rater": "Ada", "answer": "same"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1: is no answer of the labelling page"),
        (["[1]"], "line 1: is no answer of the labelling page"),
        ([json.dumps({**GOOD, "answer": None})], "line 1: is no answer of the labelling page"),
        ([json.dumps(GOOD), json.dumps({**GOOD, "answer": "maybe"})], "line 2: answer 'maybe'"),
        ([json.dumps({**GOOD, "rater": " "})], "line 1: the rater has no name"),
        ([json.dumps({**GOOD, "eval_id": "e0"})], "line 1: example 'e0' of set 'digits'"),
        ([json.dumps({**GOOD, "measure": 3})], "line 1: is no answer of the labelling page"),
        ([json.dumps({**GOOD, "measure": "phash"})], "line 1: measure 'phash'; it must be one of pdq, descriptor"),
        (
            [json.dumps({**GOOD, "measure": "descriptor"})],
            "is not among the nearest pictures of this report by descriptor",
        ),
        (
            [json.dumps(GOOD), json.dumps({**GOOD, "answer": "unsure"})],
            "line 2: 'Ada' says 'unsure' here and 'same' before",
        ),
    ],
)
def test_bad_lines_are_refused(tmp_path: Path, lines: list[str], said: str) -> None:
    place = tmp_path / "labels.jsonl"
    place.write_text("\n".join(lines), "utf-8")
    with pytest.raises(InputError, match=r"labels\.jsonl") as caught:
        read_labels([str(place)], nearest([0, 3]))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_answers_come_in_the_order_of_the_sample(tmp_path: Path) -> None:
    closest = nearest([5, 3])
    for rater in ("Bo", "Ada"):
        lines = [
            json.dumps({**GOOD, "rater": rater, "eval_id": f"e{row}", "uid": row.to_bytes(16).hex()}) for row in (1, 0)
        ]
        (tmp_path / f"{rater}.jsonl").write_text("\n".join([*lines, lines[0]]), "utf-8")
    places = [str(tmp_path / name) for name in ("Bo.jsonl", "Ada.jsonl")]
    both = pa.concat_tables([closest, nearest([5, 3], [0.4, 0.6])])
    line = json.dumps({**GOOD, "measure": "descriptor", "answer": "unsure"})
    (tmp_path / "other.jsonl").write_text(line, "utf-8")
    mixed = read_labels([*places, str(tmp_path / "other.jsonl")], both)
    assert mixed["measure"].to_pylist() == ["pdq"] * 4 + ["descriptor"]
    assert mixed.to_pylist()[-1]["descriptor_score"] == 0.6
    found = read_labels(places, closest)
    assert mixed.slice(0, 4).equals(found)
    assert found.schema == LABEL_SCHEMA
    assert [(row["eval_row"], row["rater"]) for row in found.to_pylist()] == [
        (0, "Ada"),
        (0, "Bo"),
        (1, "Ada"),
        (1, "Bo"),
    ]
    assert read_labels(places[::-1], closest).equals(found)
    assert read_labels([], closest).num_rows == 0
