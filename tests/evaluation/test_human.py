"""The human study: sheets that give nothing away, answers scored against a naive twin, the page in a browser where there is one."""

import html
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from evaluation import human, human_scores
from evaluation.__main__ import main
from evaluation.config import HumanConfig
from evaluation.human_scores import MISSING, UNKNOWN
from pipeline.content.labelled import open_set
from pipeline.contracts.config import to_toml
from pipeline.contracts.errors import InputError
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
    import tomllib

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
        assert interval.value == pytest.approx(value)
        assert (interval.low or 0) < interval.value < (interval.high or 0)
    assert len(guessed) < 60
    assert [found.by_participant[k].value for k in (1, 2, 3)] == pytest.approx(accuracies)
    assert (found.answered, found.unknown) == (int((answers != MISSING).sum()), int((answers == UNKNOWN).sum()))
    right = (answers == labels) & (answers != MISSING)
    assert found.by_class[1] == pytest.approx(right[:, labels == 1].sum() / (answers != MISSING)[:, labels == 1].sum())


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
    assert found["model"]["pearson"]["value"] == pytest.approx(np.corrcoef(pairs)[0, 1])


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


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on PATH")
def test_the_page_in_a_browser(config: Path, tmp_path: Path) -> None:
    """A copy of the page in which a script clicks through the first pictures and writes the export into the page."""
    assert main(["human", "--config", str(config)]) is None
    page = tmp_path / "out" / "participant-1.html"
    clicks = """<script>
      const press = (text) => [...document.querySelectorAll("button")].find((one) => one.textContent.includes(text)).click();
      press("beagle"); press("I don"); press("pug"); press("Back"); press("tabby");
      find("picture").onload = () => { document.body.dataset.size = find("picture").naturalWidth; };
      addEventListener("load", () => setTimeout(() => {
        document.body.append(Object.assign(document.createElement("pre"), { id: "exported", textContent: lines() }));
      }, 300));
    </script></body>"""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
    copy = page.with_name("copy.html")
    copy.write_text(text.replace("</body>", clicks), "utf-8")
    call = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*call, "--virtual-time-budget=5000", "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    exported = re.search(r'<pre id="exported">(.*?)</pre>', done.stdout, re.DOTALL)
    assert exported is not None
    (tmp_path / "answers.jsonl").write_text(html.unescape(exported[1]), "utf-8")
    assert 'data-size="48"' in done.stdout  # the picture was there
    sheet = human.sheet_of(loaded(config))
    who, answers = human_scores.read_answers([str(tmp_path / "answers.jsonl")], sheet, 3)
    first = human.order(loaded(config), sheet, 1)[:3]
    assert who == [1]
    given = dict(zip(sheet.names, answers[0].tolist(), strict=True))
    assert [given[name] for name in first] == [1, UNKNOWN, 0]
    assert (answers != MISSING).sum() == 3
    # The page as it is: its own policy lets its program and its pictures through, and it goes on where the browser left off.
    done = subprocess.run(
        [
            *call,
            "--virtual-time-budget=5000",
            f"--screenshot={tmp_path / 'shot.png'}",
            "--window-size=900,700",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    with Image.open(tmp_path / "shot.png") as shot:
        pixels = np.asarray(shot.convert("RGB"))
    name = human.order(loaded(config), sheet, 1)[3]
    level = np.asarray(Image.open(tmp_path / "out" / "pictures" / f"{name}.jpg"))[24, 24]
    assert (np.abs(pixels.astype(int) - level).max(axis=2) <= 2).sum() > 1500
