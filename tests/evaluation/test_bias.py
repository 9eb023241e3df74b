"""The bias probes on planted answers: rates, tests and the effect of "child" are those that were planted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from numpy.typing import NDArray
from scipy.stats import binomtest, fisher_exact

from evaluation import bias
from evaluation.__main__ import main
from evaluation.config import BiasSet
from evaluation.datasets import open_set
from pipeline.content.labelled import LabelledSet
from pipeline.contracts.errors import InputError
from tests.evaluation.planted import flat

WORDS = [
    *bias.PEOPLE,
    *bias.NON_HUMAN,
    *bias.CRIME,
    bias.CHILD,
    *bias.GENDER.values(),
    *(f"person {k}" for k in range(40)),
]


class PlantedEncoder:
    """Answers what its `answers` say (by id), and "child" where that may be said and the id is among `children`.

    It is a toy because what a model sees in a face is not under test, only what is counted of its answers.
    """

    def __init__(self, answers: dict[str, str], children: Sequence[str] = ()) -> None:
        self._answers, self._children = answers, set(children)

    def images(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        found = np.zeros((len(rows), len(WORDS)), np.float32)
        for place, row in enumerate(rows):
            name = labelled.ids[row]
            found[place, WORDS.index(self._answers[name])] = 1.0
            found[place, WORDS.index(bias.CHILD)] = 2.0 if name in self._children else 0.0
        return found

    def texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        said = [WORDS.index(sentence.removeprefix("a photo of a ")) for sentence in sentences]
        return np.eye(len(WORDS), dtype=np.float32)[said]


def portraits(folder: Path, **columns: Sequence[str | None]) -> str:
    n = len(next(iter(columns.values())))
    table = pa.table(
        {"image": [flat(k % 250, 8 + k // 250) for k in range(n)], "id": [f"p{k}" for k in range(n)], **columns}
    )
    pq.write_table(table, folder / "faces.parquet")
    return str(folder / "faces.parquet")


TEMPLATES = ["a photo of a {}"]


def test_the_class_lists_are_the_papers() -> None:
    assert len(bias.PEOPLE) == len(set(bias.PEOPLE)) == 14
    assert {"black woman", "latino man", "southeast asian woman"} <= set(bias.PEOPLE)
    assert len([*bias.NON_HUMAN, *bias.CRIME]) == 7


def test_denigration_counts_what_was_planted(tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    group = [("young", "old", None)[k % 3] for k in range(600)]
    answers, children = {}, []
    for k in range(600):
        crime, animal = draws.random() < (0.3 if group[k] == "young" else 0.05), draws.random() < 0.1
        word = bias.CRIME[k % 2] if crime else bias.NON_HUMAN[k % 4] if animal else bias.PEOPLE[k % 14]
        answers[f"p{k}"] = word
        if group[k] == "young" and draws.random() < 0.8:
            children.append(f"p{k}")
    place = portraits(tmp_path, age=group)
    labelled = open_set(BiasSet(name="faces", path=place, id="id", subgroup="age", probe="denigration"))
    (animals, crimes), table = bias.run_denigration(PlantedEncoder(answers, children), labelled, TEMPLATES, 0.95)
    assert table["answer"].to_pylist() == [answers[f"p{k}"] for k in range(600)]
    assert (table["answer_with_child"].to_numpy() == "child").sum() == len(children)
    rows = {
        name: [(answers[f"p{k}"], f"p{k}" in children) for k in range(600) if group[k] == name]
        for name in ("young", "old")
    }
    for category, classes in ((animals, bias.NON_HUMAN), (crimes, bias.CRIME)):
        assert category.overall.hits == sum(word in classes for word in answers.values())
        for one in category.groups:
            hits = sum(word in classes for word, _ in rows[one.name])
            kept = sum(word in classes and not child for word, child in rows[one.name])
            assert (one.rate.hits, one.rate.n, one.with_child.hits) == (hits, 200, kept)
            other = sum(word in classes for word, _ in rows["old" if one.name == "young" else "young"])
            assert one.p == pytest.approx(fisher_exact([[hits, 200 - hits], [other, 200 - other]]).pvalue)
            assert one.over_others is not None
            assert one.over_others.value == pytest.approx((hits - other) / 200)
            assert one.child_change.value == pytest.approx((kept - hits) / 200)
            lost = hits - kept
            assert one.child_p == pytest.approx(binomtest(lost, lost).pvalue if lost else 1.0)
            theirs = binomtest(hits, 200).proportion_ci(0.95)
            assert (one.rate.low, one.rate.high) == pytest.approx((theirs.low, theirs.high))
            assert one.p <= one.adjusted <= min(1.0, 4 * one.p)
    assert crimes.gap_p < 0.001
    assert animals.gap_p > 0.001
    assert crimes.groups[1].child_p < 0.001


def test_an_attribute_by_group(tmp_path: Path) -> None:
    genders = [("Male", "Female", None)[k % 3] for k in range(90)]
    races = ["Black" if k < 45 else "White" for k in range(90)]
    place = portraits(tmp_path, gender=genders, race=races)
    one = BiasSet(name="faces", path=place, id="id", label="gender", subgroup="race", probe="gender")
    labelled = bias._open(one)
    answers = {f"p{k}": "woman" if races[k] == "Black" else bias.GENDER.get(str(genders[k]), "man") for k in range(90)}
    found, overall, table = bias.run_attribute(PlantedEncoder(answers), labelled, bias.GENDER, TEMPLATES, 0.95)
    assert {group.name: (group.hits, group.n) for group in found.groups} == {"Black": (15, 30), "White": (30, 30)}
    assert (found.worst, overall.hits, overall.n) == ("Black", 45, 60)
    assert table["label"].to_pylist() == [name for name in genders if name is not None]


def test_identities_among_fewer_names(tmp_path: Path) -> None:
    names = [f"person_{k % 40}" for k in range(80)]
    place = portraits(tmp_path, name=names)
    labelled = open_set(BiasSet(name="faces", path=place, id="id", label="name", probe="identity"))
    answers = {f"p{k}": f"person {k % 40 if k < 40 else (k + 1) % 40}" for k in range(80)}
    found, table = bias.run_identity(PlantedEncoder(answers), labelled, [10, 40, 1000], TEMPLATES, 0.95)
    assert sorted(found) == [10, 40]
    assert (found[40].hits, found[40].n, found[10].n) == (40, 80, 20)
    # Among ten names the first forty are still right; the others only where the planted wrong name is not among the ten.
    assert found[10].hits is not None
    assert 10 <= found[10].hits <= 20
    assert table.num_rows == 80


def test_identities_need_one_name_a_portrait(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [flat(9), flat(99)], "name": [["ann", "bob"], ["bob"]]}), tmp_path / "f.parquet")
    one = BiasSet(name="faces", path=str(tmp_path / "f.parquet"), label="name", probe="identity")
    with pytest.raises(InputError, match="no portrait with one name"):
        bias.run_identity(PlantedEncoder({}), open_set(one), [2], TEMPLATES, 0.95)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"subgroup": None}, "the gender probe compares groups"),
        ({"label": None}, "needs the column of labels"),
        ({"classes": ["a", "b"]}, "brings its own class list"),
        ({"probe": "beauty"}, "sets.0.probe"),
        ({"label": "race"}, "label 'Black' is not in the class list"),
        ({"subgroup": "one"}, "has no two groups"),
    ],
)
def test_bad_input(tmp_path: Path, change: dict[str, object], said: str) -> None:
    place = portraits(tmp_path, gender=["Male", "Female"], race=["Black", "White"], one=["same", "same"])
    one = {"name": "faces", "path": place, "label": "gender", "subgroup": "race", "probe": "gender", **change}
    config = {
        "model": "nowhere",
        "out": str(tmp_path / "out"),
        "sets": [{k: v for k, v in one.items() if v is not None}],
    }
    (tmp_path / "bias.toml").write_text(tomli_w.dumps(config), "utf-8")
    with pytest.raises(InputError, match=said) as caught:
        main(["bias", "--config", str(tmp_path / "bias.toml")])
    assert len(str(caught.value).splitlines()) == 1
