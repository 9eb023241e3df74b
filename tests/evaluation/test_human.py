"""The human study: sheets that give nothing away, answers scored against a naive twin, the page in a browser where there is one."""

import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from evaluation import human, human_scores
from evaluation.__main__ import main
from evaluation.config import HumanConfig
from evaluation.datasets import open_set
from evaluation.human_scores import MISSING, UNKNOWN
from pipeline.contracts.config import to_toml
from pipeline.contracts.errors import InputError
from tests.browser import browser, complaints, needs_browser, requests, show
from tests.evaluation.answers import write_answers
from tests.evaluation.planted import flat

CLASSES = ["tabby</script>", "beagle", "pug"]


def table(folder: Path, name: str, levels: range, size: int = 60) -> str:
    labels = pa.array([k % 3 for k in range(len(levels))], pa.int32())
    pq.write_table(pa.table({"image": [flat(k, size) for k in levels], "label": labels}), folder / name)
    return str(folder / name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    shared = {"label": "label", "classes": CLASSES}
    settings = {
        "set": {"name": "pets", "path": table(tmp_path, "pets.parquet", range(0, 90, 3)), **shared},
        "samples": {"name": "train", "path": table(tmp_path, "train.parquet", range(0, 240, 8)), **shared},
        "shots": 2,
        "participants": 3,
        "longest": 48,
        "out": str(tmp_path / "out"),
    }
    place = tmp_path / "human.toml"
    place.write_text(to_toml(HumanConfig.model_validate(settings)), "utf-8")
    return place


def loaded(place: Path, **more: object) -> HumanConfig:
    return HumanConfig.model_validate({**tomllib.loads(place.read_text("utf-8")), **more})


def asked_of(page: Path) -> dict[str, object]:
    found = re.search(r"const asked = (.*);\n", page.read_text("utf-8"))
    assert found is not None
    asked: dict[str, object] = json.loads(found[1])
    return asked


def test_sheets(config: Path, tmp_path: Path) -> None:
    assert main(["human", "--config", str(config)]) is None
    out = tmp_path / "out"
    pages = [asked_of(out / f"participant-{k}.html") for k in (1, 2, 3)]
    names = [path.stem for path in (out / "pictures").iterdir()]
    asked = [name for name in names if not name.startswith("sample-")]
    assert len(asked) == 30
    assert len(names) == 30 + 6
    orders = [page["order"] for page in pages]
    assert all(sorted(order) == sorted(asked) for order in orders if isinstance(order, list))
    assert len({json.dumps(order) for order in orders}) == 3
    assert pages[0]["classes"] == CLASSES
    text = (out / "participant-1.html").read_text("utf-8")
    assert text.count("</script>") == 1  # a class cannot end the script
    assert not re.search(r"https?://", text)
    # The samples are two of each class, and none of them is asked about (the two sets share pictures).
    sheet = human.sheet_of(loaded(config))
    assert sheet.sampled is not None
    for label, rows in enumerate(sheet.samples):
        assert [int(sheet.sampled.labels[row]) for row in rows] == [label, label]
        assert not {sheet.sampled.sha256[row] for row in rows} & set(sheet.labelled.sha256)
    with Image.open(out / "pictures" / f"{asked[0]}.jpg") as opened:
        assert max(opened.size) == 48
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["human", "--config", str(config)]) is None
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert human.sheet_of(loaded(config, seed=1)).digest != sheet.digest
    assert len(human.sheet_of(loaded(config, pictures=7)).rows) == 7


def made_answers(labels: NDArray[np.int32], seed: int) -> NDArray[np.int32]:
    """Three people: a good one, a guessing one, one who gives up often and has not finished."""
    draws = np.random.default_rng(seed)
    n = len(labels)
    answers = np.stack([np.where(draws.random(n) < rate, labels, draws.integers(0, 3, n)) for rate in (0.9, 0.2, 0.6)])
    answers[2, draws.random(n) < 0.3] = UNKNOWN
    answers[2, :4] = MISSING
    answers[0, 3] = UNKNOWN
    answers[1, 3] = UNKNOWN
    found: NDArray[np.int32] = answers.astype(np.int32)
    return found


def test_scores_against_a_naive_twin() -> None:
    labels = (np.arange(60) % 3).astype(np.int32)
    answers = made_answers(labels, 1)
    found = human_scores.score(answers, labels, [1, 2, 3], 3, 0.95)
    accuracies, guesses, credits, guessed = [], [], [], []
    for person in answers.tolist():
        given = [(a, b) for a, b in zip(person, labels.tolist(), strict=True) if a != MISSING]
        accuracies.append(np.mean([a == b for a, b in given]))
        guesses.append(np.mean([a == b for a, b in given if a != UNKNOWN]))
    for column, label in zip(answers.T.tolist(), labels.tolist(), strict=True):
        votes = Counter(answer for answer in column if answer >= 0)
        best = [answer for answer, count in votes.items() if count == max(votes.values())]
        credits.append(1 / len(best) if label in best else 0.0)
        if votes:
            guessed.append(credits[-1])
    for interval, value in (
        (found.accuracy, np.mean(accuracies)),
        (found.on_guesses, np.mean(guesses)),
        (found.majority, np.mean(credits)),
        (found.majority_on_guesses, np.mean(guessed)),
    ):
        assert interval is not None
        assert interval.value == pytest.approx(value)
        assert (interval.low or 0) < interval.value < (interval.high or 0)
    assert len(guessed) < 60
    assert [found.by_participant[k].value for k in (1, 2, 3)] == pytest.approx(accuracies)
    assert (found.answered, found.unknown) == (int((answers != MISSING).sum()), int((answers == UNKNOWN).sum()))
    right = (answers == labels) & (answers != MISSING)
    assert found.by_class[1] == pytest.approx(right[:, labels == 1].sum() / (answers != MISSING)[:, labels == 1].sum())
    for share, interval in zip(found.by_class, found.by_class_intervals, strict=True):
        assert share is not None
        assert interval is not None
        assert interval.value == share
        assert (interval.low or 0) < share < (interval.high or 0)
    fewer = human_scores.score(answers, labels, [1, 2, 3], 4, 0.95)
    assert (fewer.by_class[3], fewer.by_class_intervals[3]) == (None, None)


@pytest.mark.prove
def test_the_interval_of_many_people_and_pictures_is_the_sum_of_both_variances() -> None:
    """People who differ much and pictures that do not: the width is the people's; the other way round, the pictures'."""
    draws = np.random.default_rng(2)
    labels = (np.arange(400) % 2).astype(np.int32)
    rates = np.repeat(np.array([0.3, 0.9]), 20)
    right = draws.random((40, 400)) < rates[:, None]
    found = human_scores.score(np.where(right, labels, 1 - labels).astype(np.int32), labels, range(1, 41), 2, 0.95)
    assert (found.accuracy.high or 0) - (found.accuracy.low or 0) == pytest.approx(2 * 1.96 * 0.3 / 40**0.5, rel=0.15)
    hard = np.tile(draws.random(400) < 0.5, (40, 1))
    found = human_scores.score(np.where(hard, labels, 1 - labels).astype(np.int32), labels, range(1, 41), 2, 0.95)
    assert (found.accuracy.high or 0) - (found.accuracy.low or 0) == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.15)


def write_lines(place: Path, sheet: human.Sheet, answers: NDArray[np.int32]) -> None:
    lines = [
        json.dumps({"sheet": sheet.digest, "participant": person, "picture": name, "answer": None if a < 0 else int(a)})
        for person, row in enumerate(answers, 1)
        for name, a in zip(sheet.names, row, strict=True)
        if a != MISSING
    ]
    place.write_text("\n".join(lines) + "\n", "utf-8")


def test_the_command(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = human.sheet_of(loaded(config))
    labels = np.array(sheet.labels, np.int32)
    answers = made_answers(labels, 3)
    write_lines(tmp_path / "answers.jsonl", sheet, answers)
    labelled = open_set(loaded(config).set)
    scores = np.eye(3, dtype=np.float32)[np.where(np.arange(30) % 4 == 0, 0, labelled.labels)]
    place = write_answers(tmp_path / "pets.model.parquet", scores, labelled.labels, set_hash=labelled.content_hash)
    changed = pq.read_table(place)
    digests = pa.array(labelled.sha256, pa.binary(32))
    pq.write_table(changed.set_column(2, "sha256", digests).replace_schema_metadata(changed.schema.metadata), place)
    call = ["human-scores", "--config", str(config), f"answers=['{tmp_path / 'answers.jsonl'}']"]
    assert main([*call, f"predictions='{place}'"]) is None
    said = capsys.readouterr().out
    assert "3 people, 30 pictures, 2 samples a class" in said
    found = json.loads((tmp_path / "out" / "human.json").read_bytes())
    assert (
        found["humans"]["accuracy"]["value"] == human_scores.score(answers, labels, [1, 2, 3], 3, 0.95).accuracy.value
    )
    assert found["model"]["accuracy"]["hits"] == int((scores.argmax(axis=1) == labelled.labels).sum())
    pairs = np.array([found["humans"]["by_class"], found["model"]["by_class"]])
    assert [one["value"] for one in found["model"]["by_class_rates"]] == found["model"]["by_class"]
    assert found["model"]["pearson"]["value"] == pytest.approx(np.corrcoef(pairs)[0, 1])
    whole = pq.read_table(place)
    pq.write_table(whole.slice(2).replace_schema_metadata(whole.schema.metadata), place)
    with pytest.raises(InputError, match=r"pets\.model\.parquet has no answer to 2 of the 30 pictures"):
        main([*call, f"predictions='{place}'"])


def test_people_who_never_guess_beside_a_model_that_is_always_right(config: Path, tmp_path: Path) -> None:
    """No share of no guesses, no correlation of classes that are alike: nulls, in a file that is JSON."""
    sheet = human.sheet_of(loaded(config))
    write_lines(tmp_path / "a.jsonl", sheet, np.full((2, len(sheet.names)), UNKNOWN, np.int32))
    labelled = open_set(loaded(config).set)
    scores = np.eye(3, dtype=np.float32)[labelled.labels]
    place = write_answers(tmp_path / "m.parquet", scores, labelled.labels, set_hash=labelled.content_hash)
    changed = pq.read_table(place)
    digests = pa.array(labelled.sha256, pa.binary(32))
    pq.write_table(changed.set_column(2, "sha256", digests).replace_schema_metadata(changed.schema.metadata), place)
    answers = f"answers=['{tmp_path / 'a.jsonl'}']"
    assert main(["human-scores", "--config", str(config), answers, f"predictions='{place}'"]) is None
    found = json.loads((tmp_path / "out" / "human.json").read_bytes())
    assert (found["humans"]["accuracy"]["value"], found["humans"]["on_guesses"]) == (0.0, None)
    assert (found["model"]["accuracy"]["value"], found["model"]["pearson"]) == (1.0, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sheet": "ab" * 32}, "answers sheet 'abababababab'"),
        ({"participant": 4}, "participant 4, picture .* are not of this sheet"),
        ({"picture": "../x"}, "picture '../x' are not of this sheet"),
        ({"answer": 3}, "answer 3 of 3 classes"),
        ({"answer": "pug"}, "is no answer"),
        ({"more": 1}, "is no answer"),
        ({}, "answers picture .* twice"),
    ],
)
def test_answers_that_are_none(config: Path, tmp_path: Path, change: dict[str, object], said: str) -> None:
    sheet = human.sheet_of(loaded(config))
    good = {"sheet": sheet.digest, "participant": 1, "picture": sheet.names[0], "answer": 1}
    (tmp_path / "a.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n", "utf-8")
    with pytest.raises(InputError, match=said) as caught:
        main(["human-scores", "--config", str(config), f"answers=['{tmp_path / 'a.jsonl'}']"])
    assert len(str(caught.value).splitlines()) == 1
    assert "line 2" in str(caught.value)


def test_pictures_with_several_labels_are_no_sheet(config: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [flat(9), flat(99)], "label": [[0, 1], [2]]}), tmp_path / "voc.parquet")
    path = f"set.path='{tmp_path / 'voc.parquet'}'"
    with pytest.raises(InputError, match=r"voc.parquet. has no picture with one label"):
        main(["human", "--config", str(config), path, "set.absent_classes=true"])
    assert not (tmp_path / "out").exists()


def test_sheets_that_cannot_be(config: Path, tmp_path: Path) -> None:
    for said, overrides in (
        ("go with shots = 1 or 2", ["shots=0"]),
        (
            "has 1 pictures that are not asked about, 2 are needed",
            [f"samples.path='{table(tmp_path, 's.parquet', range(240, 243))}'"],
        ),
        ("has other classes", ["samples.classes=['a', 'b', 'c']"]),
    ):
        with pytest.raises(InputError, match=said):
            main(["human", "--config", str(config), *overrides])
    with pytest.raises(InputError, match="no answer in any file"):
        main(["human-scores", "--config", str(config)])


@needs_browser
def test_the_page_in_a_browser(config: Path, tmp_path: Path) -> None:
    """Answered by clicks, exported by its button, read by `human-scores`: offline, nothing on the console, resumed after a reload."""
    assert main(["human", "--config", str(config)]) is None
    page = tmp_path / "out" / "participant-1.html"
    sheet = human.sheet_of(loaded(config))
    shown = human.order(loaded(config), sheet, 1)
    with browser() as window:
        window.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
        show(window, page)

        def press(words: str) -> None:
            for button in window.find_elements(By.TAG_NAME, "button"):
                if words in button.text and button.is_displayed():
                    button.click()
                    return
            raise AssertionError(f"no button {words!r}")

        for words in ("beagle", "I don", "pug", "Back", "tabby", "Back"):
            press(words)
        picture = window.find_element(By.ID, "picture")
        assert str(picture.get_attribute("src")).endswith(f"/pictures/{shown[2]}.jpg")
        WebDriverWait(window, 20).until(lambda _: picture.get_property("naturalWidth") == 48)
        window.find_element(By.ID, "filter").send_keys("BEA")
        assert [one.text for one in window.find_elements(By.CSS_SELECTOR, "#choices button") if one.is_displayed()] == [
            "beagle"
        ]
        show(window, page, scheme="dark", width=400)
        assert "4 of 30, 3 answered" in window.find_element(By.ID, "place").text
        assert window.execute_script("return document.documentElement.scrollWidth") <= 400
        press("Export")
        exported = tmp_path / "answers-1.jsonl"
        WebDriverWait(window, 60).until(lambda _: exported.exists() and exported.stat().st_size > 0)
        assert complaints(window) == []
        assert all(urlsplit(url).scheme in ("file", "blob") for url in requests(window))
    who, answers = human_scores.read_answers([str(exported)], sheet, 3)
    given = dict(zip(sheet.names, answers[0].tolist(), strict=True))
    assert who == [1]
    assert [given[name] for name in shown[:3]] == [1, UNKNOWN, 0]
    assert (answers != MISSING).sum() == 3
