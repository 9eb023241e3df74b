"""Models in pairs: Tango's interval against a numeric twin and its own level, the command on files, what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, norm

from evaluation import compare, predictions
from evaluation.__main__ import main
from evaluation.intervals import mcnemar, paired_difference
from pipeline.contracts.errors import InputError
from tests.evaluation.answers import black_beginnings, ends_of_repeats, outcomes, write_answers


def rejected(delta: float, wins: int, losses: int, n: int, confidence: float) -> bool:
    """Tango's score test by its definition: the other parameter where the likelihood is largest, found by a search."""

    def loss(q: float) -> float:
        cells = [(wins, q + delta), (losses, q), (n - wins - losses, 1 - 2 * q - delta)]
        return -sum(count * float(np.log(max(share, 1e-300))) for count, share in cells if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    q = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    statistic = (wins - losses - n * delta) / np.sqrt(n * (2 * q + delta * (1 - delta)))
    return bool(abs(statistic) > norm.ppf(0.5 + confidence / 2))


def test_the_paired_interval_is_the_score_tests() -> None:
    draws = np.random.default_rng(1)
    for _ in range(60):
        n = int(draws.integers(5, 400))
        wins, losses, _ = (int(one) for one in draws.multinomial(n, draws.dirichlet([1, 1, 3])))
        confidence = float(draws.uniform(0.7, 0.995))
        found = paired_difference(wins, losses, n, confidence)
        assert found.low is not None
        assert found.high is not None
        assert found.value == (wins - losses) / n
        for end, outward in ((found.low, -1), (found.high, 1)):
            inside, outside = end - outward * 1e-4, end + outward * 1e-4
            if abs(end) < 0.9999:
                assert not rejected(inside, wins, losses, n, confidence)
                assert rejected(outside, wins, losses, n, confidence)


def test_the_paired_interval_at_its_ends() -> None:
    z2 = norm.ppf(0.975) ** 2
    same = paired_difference(0, 0, 50, 0.95)  # nobody told them apart: z² / (n + z²)
    assert (same.low, same.high) == pytest.approx((-z2 / (50 + z2), z2 / (50 + z2)), abs=1e-9)
    always = paired_difference(50, 0, 50, 0.95)
    assert always.high == 1.0
    assert always.low == pytest.approx((50 - z2) / (50 + z2), abs=1e-9)
    turned = paired_difference(7, 19, 100, 0.95)
    plain = paired_difference(19, 7, 100, 0.95)
    assert (turned.low, turned.high) == pytest.approx((-(plain.high or 0), -(plain.low or 0)), abs=1e-9)


def test_the_paired_interval_covers_what_it_should() -> None:
    draws = np.random.default_rng(2)
    held = 0
    for wins, losses, _ in draws.multinomial(80, [0.12, 0.04, 0.84], size=2000):
        found = paired_difference(int(wins), int(losses), 80, 0.9)
        held += (found.low or 0.0) <= 0.08 <= (found.high or 0.0)
    assert 0.87 <= held / 2000 <= 0.94


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Three models on two sets; of the first set's 300 rows the last 100 show the pictures of the first 100."""
    draws = np.random.default_rng(3)
    places = []
    for number, rate in enumerate((0.6, 0.75, 0.6)):
        for name, n in (("imagenet", 300), ("shapes", 120)):
            right = draws.random(n) < rate
            if name == "imagenet":
                right[200:] = right[:100]
            scores, labels = outcomes(right.tolist(), classes=4)
            pictures = [f"{name}{row % 200}" for row in range(n)]
            write_answers(
                tmp_path / str(number) / "predictions" / f"{name}.parquet",
                scores,
                labels,
                pictures=pictures,
                model=f"{number}" * 64,
                keep_scores=False,
            )
        places.append(str(tmp_path / str(number)))
    return places


def test_compare(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compare.json"
    assert main(["compare", *runs, "--out", str(out)]) is None
    said = capsys.readouterr().out
    found = json.loads(out.read_bytes())
    raw = {
        (number, name): np.asarray(pq.read_table(Path(place) / "predictions" / f"{name}.parquet")["correct"])
        for number, place in enumerate(runs)
        for name in ("imagenet", "shapes")
    }
    p_values, adjusted = [], []
    for number, other in enumerate(found["others"], 1):
        for name, tested in (("imagenet", 200), ("shapes", 120)):
            before, after = raw[0, name][:tested], raw[number, name][:tested]
            one = other["sets"][name]
            wins, losses = int((after & ~before).sum()), int((before & ~after).sum())
            assert (one["wins"], one["losses"], one["tested"], one["n"]) == (wins, losses, tested, len(raw[0, name]))
            assert one["second"] == raw[number, name].mean()
            right = raw[number, name].tolist()
            if name == "imagenet":
                ends = ends_of_repeats(right, [row % 200 for row in range(300)])
            else:
                exact = binomtest(sum(right), len(right)).proportion_ci(0.95)
                ends = [exact.low, exact.high]
            assert one["second_interval"] == pytest.approx(ends)
            assert one["difference"]["value"] == pytest.approx(after.mean() - before.mean())
            assert one["p"] == pytest.approx(binomtest(wins, wins + losses).pvalue, rel=1e-9)
            p_values.append(one["p"])
            adjusted.append(one["p_holm"])
        values = [other["sets"][name]["difference"]["value"] for name in ("imagenet", "shapes")]
        assert other["mean_difference"]["value"] == pytest.approx(np.mean(values))
        assert other["mean_difference"]["low"] < np.mean(values) < other["mean_difference"]["high"]
    order = np.argsort(p_values)
    by_hand = np.maximum.accumulate([min(1.0, p_values[place] * (4 - rank)) for rank, place in enumerate(order)])
    assert [adjusted[place] for place in order] == pytest.approx(by_hand.tolist())
    assert "Visual N-Grams 11.5%   CLIP 76.2%" in said
    assert [row["dataset"] for row in found["visual_ngrams"]] == ["ImageNet"]
    before_bytes = out.read_bytes()
    assert main(["compare", *runs, "--out", str(out)]) is None
    assert out.read_bytes() == before_bytes


def test_the_mean_over_sets_has_the_width_of_its_examples() -> None:
    """By the normal law: independent sets, each with the variance of its differences over its size, divided by the sets squared."""
    sets = []
    for name, n in (("a", 400), ("b", 900)):
        wins, losses = n // 5, n // 10
        before, after = np.zeros(n, bool), np.zeros(n, bool)
        after[:wins], before[wins : wins + losses] = True, True
        sets.append(
            compare.Paired(
                name=name,
                n=n,
                tested=n,
                first=0.1,
                second=0.2,
                second_interval=(0.1, 0.3),
                difference=paired_difference(wins, losses, n, 0.95),
                wins=wins,
                losses=losses,
                p=mcnemar(before, after),
            )
        )
    found = compare.mean_difference(sets, 0.95)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    deviation = np.sqrt(sum((0.3 - 0.1**2) / one.n for one in sets)) / 2
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.08)
    assert compare.mean_difference(sets[:1], 0.95) is None


def test_a_video_is_one_example(tmp_path: Path) -> None:
    """Of a video every frame has the answer and the mean probabilities; these are read as logarithms, whose softmax they are."""
    scores, labels = outcomes([True, False, True], classes=4)
    frames = [3, 2, 1]
    shares, labels = np.repeat((0.1 + 0.6 * scores).astype(np.float32), frames, axis=0), np.repeat(labels, frames)
    place = write_answers(tmp_path / "clips.parquet", shares, labels, scale=30.0)
    table = pq.read_table(place)
    metadata = table.schema.metadata
    table = table.set_column(table.column_names.index("group"), "group", [["a", "a", "a", "b", "b", "c"]])
    pq.write_table(table.replace_schema_metadata(metadata), place)
    one = predictions.read(place)
    assert (one.ids, one.correct.tolist(), len(one.units())) == (["a", "b", "c"], [True, False, True], 3)
    assert one.scores is not None
    assert one.logit_scale == 1.0
    assert np.exp(one.scores).tolist() == pytest.approx(shares[[0, 3, 5]])
    other = table.set_column(table.column_names.index("group"), "group", [["a", "a", "a", "b", "c", "c"]])
    pq.write_table(other.replace_schema_metadata(metadata), place)
    with pytest.raises(InputError, match="frame 'e5' has another answer than the frames of video 'c' before it"):
        predictions.read(place)


def test_videos_with_one_first_frame_are_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """40 clips after one black frame, of which one model knows 14 and the other all: 26 wins. A clip that is there again is none more."""
    places = []
    for number, right in enumerate(([row < 14 for row in range(40)], [True] * 40)):
        given = black_beginnings(right)
        again = [*range(120), 117, 118, 119]  # the last clip once more, under another name
        folder = tmp_path / str(number)
        write_answers(
            folder / "predictions" / "clips.parquet",
            given["scores"][again],
            given["labels"][again],
            pictures=[given["pictures"][row] for row in again],
            videos=[*given["videos"], "again", "again", "again"],
            model=f"{number}" * 64,
        )
        places.append(str(folder))
    assert main(["compare", *places, "--out", str(tmp_path / "c.json")]) is None
    assert "won 26 lost 0 of 40" in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_bytes())
    one = found["others"][0]["sets"]["clips"]
    assert (one["n"], one["tested"], one["wins"], one["losses"], one["second"]) == (41, 40, 26, 0, 1.0)
    assert one["p"] == pytest.approx(binomtest(26, 26).pvalue)
    assert one["second_interval"] == pytest.approx([0.025 ** (1 / 40), 1.0])
    videos = [*range(40), 39]
    ends = ends_of_repeats([row < 14 for row in videos], videos)
    assert found["first"]["sets"]["clips"]["interval"] == pytest.approx(ends)


def test_a_video_is_known_by_all_its_frames_in_their_order(tmp_path: Path) -> None:
    scores, labels = outcomes([True] * 8)
    place = write_answers(
        tmp_path / "clips.parquet",
        np.full_like(scores, 1 / 3),
        np.zeros_like(labels),
        pictures=["a", "b", "b", "a", "a", "b", "a", "c"],
        videos=["x", "x", "y", "y", "z", "z", "w", "w"],
    )
    assert predictions.read(place).clusters().tolist() == [0, 1, 0, 2]


def test_a_set_that_says_everything_twenty_times_has_said_it_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The accuracy of 3 pictures, one of them right, is as sure as 1 of 3 makes it."""
    scores, labels = outcomes([True, False, False] * 20)
    place = write_answers(tmp_path / "rep.parquet", scores, labels, pictures=[row % 3 for row in range(60)])
    assert main(["compare", place, place, "--out", str(tmp_path / "c.json")]) is None
    exact = binomtest(1, 3).proportion_ci(0.95)
    assert f"33.33% ({exact.low:.2%} to {exact.high:.2%})   60 examples" in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_bytes())
    assert found["first"]["sets"]["rep"]["interval"] == pytest.approx([exact.low, exact.high])
    assert found["others"][0]["sets"]["rep"]["second_interval"] == pytest.approx([exact.low, exact.high])


def test_what_compare_refuses(runs: list[str], tmp_path: Path) -> None:
    scores, labels = outcomes([True] * 120, classes=4)
    other = tmp_path / "other" / "predictions" / "shapes.parquet"

    def refused(said: str, *places: str) -> None:
        with pytest.raises(InputError, match=said) as caught:
            main(["compare", *places])
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2

    names = [f"shapes{row % 200}" for row in range(120)]
    write_answers(other, scores, labels, pictures=names, set_hash="77" * 32)
    refused("scored on content hash '5e5e5e5e5e5e'.*on '777777777777'", runs[0], str(tmp_path / "other"))
    write_answers(other, scores, labels)
    refused("do not list the same examples", runs[0], str(tmp_path / "other"))
    write_answers(tmp_path / "third" / "predictions" / "else.parquet", scores, labels)
    refused("has none of the sets", runs[0], str(tmp_path / "third"))
    refused("no predictions there", runs[0], str(tmp_path / "nowhere"))
    assert predictions.find(str(other)) == {"shapes": str(other)}
    mixed = tmp_path / "mixed" / "predictions"
    for name, model in (("shapes", "cc" * 32), ("imagenet", "dd" * 32)):
        write_answers(mixed / f"{name}.parquet", scores, labels, model=model)
    refused("holds answers of 2 models .cccccccccccc, dddddddddddd.", runs[0], str(mixed.parent))
    refused("holds answers of 2 models", str(mixed.parent), runs[0])
    table = pq.read_table(other)
    bad_text = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe"))
    for said, changed in (
        ("no column 'p_label'", table.drop_columns(["p_label"])),
        ("column 'label' is int64", table.set_column(3, "label", table["label"].cast("int64"))),
        ("format version '9'", table.replace_schema_metadata({b"format_version": b"9"})),
        ("no rows", table.slice(0, 0)),
        (
            "column 'group' has 60 missing values",
            table.set_column(table.column_names.index("group"), "group", [["a", None] * 60]),
        ),
        ("not a readable Parquet file .*UTF8", table.slice(0, 1).set_column(1, "eval_id", bad_text)),
        ("below those of classes", table.set_column(3, "label", pa.array(np.full(120, -9, np.int32)))),
        ("below those of classes", table.set_column(4, "prediction", pa.array(np.full(120, -1, np.int32)))),
        ("more than one column 'label'", table.append_column("label", table["label"])),
        ("format version '\ufffd'", table.replace_schema_metadata({b"format_version": b"\xff"})),
        (
            "`prediction` is not the class with the largest of `scores`",
            table.set_column(table.column_names.index("scores"), "scores", table["scores"].combine_chunks()[::-1]),
        ),
        ("logit_scale is '-1'", table.replace_schema_metadata({**table.schema.metadata, b"logit_scale": b"-1"})),
    ):
        pq.write_table(changed, tmp_path / "changed.parquet")
        refused(said, str(tmp_path / "changed.parquet"))
