"""Zero-shot against the probe: scipy's line, planted shots, the command on files of the three runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from evaluation.__main__ import main
from evaluation.versus_probe import shots_worth, versus
from pipeline.contracts.errors import InputError

NAMES = [f"set{k}" for k in range(27)]


def worlds(slope: float, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    draws = np.random.default_rng(seed)
    probe = draws.uniform(0.6, 0.97, 27)
    zero = np.clip(0.15 + slope * (probe - 0.6) + 0.06 * draws.normal(size=27), 0.02, 0.98)
    return dict(zip(NAMES, zero.tolist(), strict=True)), dict(zip(NAMES, probe.tolist(), strict=True))


def test_the_line_is_scipys() -> None:
    zero, probe = worlds(1.3, 1)
    found = versus(zero, probe, {})
    x, y = np.array(list(probe.values())), np.array(list(zero.values()))
    theirs = stats.linregress(x, y)
    assert (found.slope.value, found.correlation.value) == pytest.approx((theirs.slope, theirs.rvalue))
    assert found.correlation_p == pytest.approx(theirs.pvalue)
    assert found.logit_slope is not None
    assert found.logit_slope.value == pytest.approx(stats.linregress(logit(x), logit(y)).slope)
    assert found.shots_median is None
    one = stats.bootstrap(
        (x, y), lambda a, b: stats.linregress(a, b).slope, paired=True, n_resamples=3000, method="BCa", rng=1
    ).confidence_interval
    assert (found.slope.low, found.slope.high) == pytest.approx((one.low, one.high), abs=0.06)


def test_one_dataset_drawn_over_and_over_has_no_slope() -> None:
    """Its scores' mean is rounded: without care the slope is rounding divided by rounding."""
    probe = {"a": 25 / 30, "b": 24 / 30, "c": 23 / 30}
    found = versus({"a": 9 / 30, "b": 9 / 30, "c": 8 / 30}, probe, {})
    for interval, most in ((found.slope, 1.0), (found.correlation, 1.0)):
        assert interval.low is not None
        assert interval.high is not None
        assert -1e-9 <= interval.low <= interval.value <= interval.high <= most + 1e-9


@pytest.mark.prove
def test_the_slopes_interval_holds_the_truth() -> None:
    held = 0
    for seed in range(10):
        found = versus(*worlds(1.0, 100 + seed), {})
        held += (found.slope.low or 9) <= 1.0 <= (found.slope.high or 0)
    assert held >= 8


def test_planted_shots_are_found() -> None:
    """Of a score that is a line in log2(shots), the shots are read off exactly; between points, below the first, above the last."""
    curve = [(float(k), 0.3 + 0.1 * np.log2(k)) for k in (1, 2, 4, 8, 16)]
    for shots in (1.0, 1.5, 5.4, 15.9, 16.0, 0.5):
        assert shots_worth(0.3 + 0.1 * np.log2(shots), curve) == pytest.approx(shots)
    assert shots_worth(0.71, curve) is None
    assert (
        shots_worth(0.4, [(1, 0.5), (2, 0.3), (4, 0.6)]) == 1.0
    )  # one shot reaches it; a falling curve is not carried on
    assert shots_worth(0.55, [(1, 0.5), (2, 0.3), (4, 0.6)]) == pytest.approx(2 * 2 ** (0.25 / 0.3))


def files(folder: Path) -> list[str]:
    zero, probe = worlds(1.3, 2)
    probe["set0"] = 0.9
    shots = {k: float(expit(-1 + 0.5 * np.log2(k))) for k in (1, 2, 4, 8, 16)}
    zero["set0"] = (shots[4] + shots[8]) / 2
    written = {
        "zeroshot": {
            name: {
                "content_hash": name,
                "classes": 10,
                "metric": "roc_auc" if name == "set2" else "accuracy",
                "headline": {"value": 0.6},
                "top1": {"value": value, "low": 0.01, "high": 0.99},
                "mean_per_class": {"value": 0.5},
            }
            for name, value in {**zero, "alone": 0.5}.items()
        },
        "probe": {
            name: {
                "content_hash": {"test": name, "train": "x"},
                "examples": {"train": 800, "validation": 200, "test": 50},
                "metric": {"set1": "mean_per_class", "set2": "roc_auc"}.get(name, "accuracy"),
                "headline": {"value": 0.8, "low": 0.7, "high": 0.9},
                "top1": {"value": value},
                "mean_per_class": {"value": 0.7},
            }
            for name, value in probe.items()
        },
        "fewshot": {
            "set0": {
                "content_hash": {"test": "set0"},
                "metric": "top1",
                "shots": {str(k): {"logistic": {"mean": value}, "ridge": {"mean": 0.1}} for k, value in shots.items()},
            }
        },
    }
    for kind, sets in written.items():
        (folder / kind).mkdir(parents=True)
        text = json.dumps({"kind": f"evaluation.{kind}", "version": 1, "sets": sets})
        (folder / kind / f"{kind}.json").write_text(text, "utf-8")
    return [str(folder / kind) for kind in written]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zero, probe, few = files(tmp_path)
    out = tmp_path / "versus.json"
    assert main(["versus-probe", zero, probe, "--fewshot", few, "--out", str(out)]) is None
    assert "over 27 datasets" in capsys.readouterr().out
    found = json.loads(out.read_bytes())
    by_name = {one["name"]: one for one in found["datasets"]}
    assert by_name["set0"]["shots"] == pytest.approx(4 * 2**0.5)
    assert found["shots_median"] == by_name["set0"]["shots"]
    assert (by_name["set1"]["zero_shot"], by_name["set1"]["probe"]) == (0.5, 0.7)
    assert (by_name["set2"]["zero_shot"], by_name["set2"]["probe"]) == (0.6, 0.8)
    assert by_name["set2"]["probe_interval"] == [0.7, 0.9]
    assert by_name["set0"]["zero_shot_interval"] == [0.01, 0.99]
    assert by_name["set1"]["probe_interval"] == [None, None]
    assert "alone" not in by_name
    # Worth more than any number of shots that was tried: on the segment up to all 100 examples a class.
    place = Path(zero) / "zeroshot.json"
    changed = json.loads(place.read_bytes())
    changed["sets"]["set0"]["top1"]["value"] = 0.85
    place.write_text(json.dumps(changed), "utf-8")
    assert main(["versus-probe", zero, probe, "--fewshot", few, "--out", str(out)]) is None
    last = float(expit(-1 + 0.5 * 4))
    expected = 16 * (100 / 16) ** ((0.85 - last) / (0.9 - last))
    assert json.loads(out.read_bytes())["shots_most"] == pytest.approx(expected)


def test_what_it_refuses(tmp_path: Path) -> None:
    zero, probe, few = files(tmp_path)

    def refused(said: str, *arguments: str) -> None:
        with pytest.raises(InputError, match=said) as caught:
            main(["versus-probe", *arguments])
        assert len(str(caught.value).splitlines()) == 1

    refused("not what `python -m evaluation zeroshot` writes", str(Path(probe) / "probe.json"), probe)
    refused("no such file", zero, str(tmp_path))
    curve = Path(few) / "fewshot.json"
    changed = json.loads(curve.read_bytes())
    changed["sets"]["set0"]["shots"] = {"0": {"logistic": {"mean": 0.5}}}
    curve.write_text(json.dumps(changed), "utf-8")
    refused("shots.0.*greater than or equal to 1", zero, probe, "--fewshot", few)
    place = Path(probe) / "probe.json"
    changed = json.loads(place.read_bytes())
    changed["sets"]["set3"]["content_hash"]["test"] = "other"
    place.write_text(json.dumps(changed), "utf-8")
    refused("'set3' was tested on content hash 'other', zero-shot on 'set3'", zero, probe)
    changed["model"] = {"sha256": "ee" * 32}
    place.write_text(json.dumps(changed), "utf-8")
    refused("probe: is of the model 'eeeeeeeeeeee', zero-shot of 'None'", zero, probe)
    del changed["model"]
    changed["sets"] = {"set3": {"metric": "top1"}}
    place.write_text(json.dumps(changed), "utf-8")
    refused("content_hash: Field required", zero, probe)
    place.write_text("[", "utf-8")
    refused("no JSON", zero, probe)
    with pytest.raises(InputError, match="1 datasets with both scores"):
        versus({"a": 0.5}, {"a": 0.6}, {})
