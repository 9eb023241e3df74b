"""Captions and class names in a corpus's captions: planted cases, and everything against a twin that compares one pair after the other."""

import csv
import gzip
import math
import os
import pickle
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.config import TextRule
from evaluation.overlap import text_stage
from evaluation.overlap.tables import TEXT_METHODS
from evaluation.overlap.text import CaptionIndex, ClassNames, class_names, read_captions, read_names, token_forms
from pipeline.content.scripts import tokens
from pipeline.content.text import normal_form
from pipeline.contracts.errors import InputError

TABLES = Path(os.environ.get("REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "tables"
CAPTION = "A brown dog chases a red ball through the old park"
OTHERS = [
    "Two people sit on a bench near the sea",
    "A man in a black coat reads a newspaper",
    "A plate of noodles with an egg on top",
    "A red bus drives over the bridge in the rain",
    "一只棕色的狗在公园里追逐红色的球",
    "三个孩子坐在海边的长椅上看日落",
]


def found(
    ours: Sequence[str | None], theirs: Sequence[str | None], rule: TextRule | None = None
) -> set[tuple[object, ...]]:
    """(caption, corpus row, method, score in thousandths) of every match."""
    index = CaptionIndex(read_captions(ours, len(ours)), rule or TextRule())
    matches = index.search(token_forms(pa.array(theirs, pa.string())))
    methods = [TEXT_METHODS[number] for number in matches.method]
    scores = [round(1000 * score) for score in matches.score]
    return set(zip(matches.text.tolist(), matches.rows.tolist(), methods, scores, strict=True))


@pytest.mark.parametrize(
    ("said", "method"),
    [
        (CAPTION, "exact"),
        (CAPTION.upper() + " !!", "exact"),
        ("a  brown dog,\tchases a red “ball” — through the old park…", "exact"),
        ("Ａ brown ｄｏｇ chases a red ball through the old park", "exact"),
        (f"Stock photo: {CAPTION}, 2019", "contained"),
        (CAPTION.replace("old", "city"), "near"),
        (CAPTION.replace(" red", ""), "near"),
        ("In the old park a dog runs after a red ball", None),
        ("A brown dog and a red ball", None),
        ("A brown cat chases a grey mouse through the old house", None),
        ("A brown dogma chases a red ballad through the older park", None),
        ("", None),
        (None, None),
    ],
)
def test_an_english_caption(said: str | None, method: str | None) -> None:
    matches = {(row, how) for caption, row, how, _ in found([*OTHERS, CAPTION], ["x", said]) if caption == 6}
    assert matches == ({(1, method)} if method else set())


@pytest.mark.parametrize(
    ("said", "method"),
    [
        ("一只棕色的狗，在公园里追逐红色的球。", "exact"),
        ("图：一只棕色的狗在公园里追逐红色的球 图库照片", "contained"),
        ("一只棕色的狗在花园里追逐红色的球", "near"),
        ("公园里有一只狗和一个红色的球", None),
        ("三个孩子坐在海边", None),
    ],
)
def test_a_chinese_caption(said: str, method: str | None) -> None:
    matches = {(caption, how) for caption, _, how, _ in found([CAPTION, *OTHERS], [said])}
    assert matches == ({(5, method)} if method else set())


def test_short_captions_must_be_whole_and_the_shortest_are_not_searched() -> None:
    ours = ["a dog", "two dogs in the snow", "两只狗", "两只狗在雪里"]
    theirs = ["a dog", "see two dogs in the snow now", "two dogs in the deep snow", "两只狗", "看两只狗在雪里"]
    assert found(ours, theirs) == {(1, 1, "contained", 1000), (3, 4, "contained", 1000)}
    assert (0, 0, "exact", 1000) in found(ours, theirs, TextRule(least=1))


def test_captions_that_are_equal_in_normal_form_are_one() -> None:
    ours = ["Two dogs in the snow", None, "two dogs, in the SNOW", "!"]
    written = read_captions(ours, 4)
    assert written.text.tolist() == [0, -1, 0, -1]
    assert found(ours, ["two dogs in the snow"]) == {(0, 0, "exact", 1000)}


def test_a_set_without_captions_finds_nothing() -> None:
    assert found([None, "?"], ["?", None]) == set()
    index = CaptionIndex(read_captions(None, 3), TextRule())
    assert len(index.search(pa.array(["a", None])).rows) == 0


# ---- against a twin


def naive(ours: Sequence[str], theirs: Sequence[str | None], rule: TextRule) -> set[tuple[object, ...]]:
    """By definition, pair by pair."""
    first: dict[str, int] = {}
    for place, caption in enumerate(ours):
        if tokens(normal_form(caption)):
            first.setdefault(" ".join(tokens(normal_form(caption))), place)
    cut = {form: form.split() for form in first}
    runs = {form: runs_of(cut[form], rule.run) for form in first}
    having = Counter(run for form in first for run in runs[form])
    weight = {run: round(1e6 * math.log1p(len(first) / count)) for run, count in having.items()}
    rows = [[] if said is None else tokens(normal_form(said)) for said in theirs]
    there = [runs_of(words, rule.run) for words in rows]
    matches: set[tuple[object, ...]] = set()
    for form, place in first.items():
        for row, words in enumerate(rows):
            size, shared = len(cut[form]), sum(weight[run] for run in runs[form] & there[row])
            score = shared / sum(weight[run] for run in runs[form])
            if size < rule.least:
                continue
            if words == cut[form]:
                matches.add((place, row, "exact", 1000))
            elif any(words[at : at + size] == cut[form] for at in range(len(words))):
                matches.add((place, row, "contained", 1000))
            elif size >= rule.whole_below and score >= rule.similarity:
                matches.add((place, row, "near", round(1000 * score)))
    return matches


def runs_of(words: list[str], longest: int) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + size]) for size in range(1, longest + 1) for at in range(len(words) - size + 1)}


WORDS = st.sampled_from(["a", "dog", "on", "the", "Sea", "犬", "海", "é", "x1", "&"])
CAPTIONS = st.lists(st.lists(WORDS, min_size=0, max_size=9).map(" ".join), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    CAPTIONS,
    CAPTIONS,
    st.sampled_from([0.3, 0.5, 0.8, 0.95, 1.0]),
    st.integers(1, 4),
    st.integers(1, 7),
    st.integers(1, 5),
)
def test_equal_to_a_naive_twin(
    ours: list[str], theirs: list[str], similarity: float, run: int, whole_below: int, least: int
) -> None:
    """A small vocabulary, so that every kind of match and nearly every score is common."""
    rule = TextRule(similarity=similarity, run=run, whole_below=whole_below, least=least)
    said = [*theirs, *(f"{caption} {other}" for caption, other in zip(ours, theirs, strict=False)), None]
    assert found(ours, said, rule) == naive(ours, said, rule)


def test_equal_to_a_naive_twin_on_sentences() -> None:
    """Longer captions of a larger vocabulary, most of them changed copies, in more rows than the first room for answers."""
    draws = random.Random(5)
    vocabulary = [f"w{number}" for number in range(60)] + list("天地玄黄宇宙洪荒")
    ours = [" ".join(draws.choices(vocabulary, k=draws.randint(4, 16))) for _ in range(60)]
    theirs = []
    for _ in range(2500):
        words = draws.choice(ours).split()
        for _ in range(draws.randint(0, 2)):
            words[draws.randrange(len(words))] = draws.choice(vocabulary)
        theirs.append(" ".join([*words, *draws.choices(vocabulary, k=draws.randint(0, 1))]))
    rule = TextRule(similarity=0.6)
    matches = naive(ours, theirs, rule)
    assert found(ours, theirs, rule) == matches
    assert {method for _, _, method, _ in matches} == set(TEXT_METHODS)
    assert len(matches) > 2048


def test_the_index_travels_to_a_worker() -> None:
    """As Ray sends it, without copies of its arrays, it finds the same."""
    index = CaptionIndex(read_captions([CAPTION, *OTHERS], 7), TextRule())
    forms = token_forms(pa.array([CAPTION.replace("old", "city"), *OTHERS]))
    buffers: list[pickle.PickleBuffer] = []
    packed = pickle.dumps(index, 5, buffer_callback=buffers.append)
    for one, other in zip(index.search(forms), pickle.loads(packed, buffers=buffers).search(forms), strict=True):
        assert np.array_equal(one, other)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=20), st.text("a 犬ｱก,é\u0301", max_size=20)), max_size=5))
def test_token_forms_are_the_tokens_of_the_normal_form(captions: list[str | None]) -> None:
    said = [None if one is None else one.encode("utf-8", "replace").decode() for one in captions]
    expected = [None if one is None else " ".join(tokens(normal_form(one))) for one in said]
    assert token_forms(pa.array(said, pa.string())).to_pylist() == expected


# ---- class names


def test_class_names_stand_as_words() -> None:
    names = ClassNames([[["dog", "犬", "小狗"], ["hot dog"]], [], [["Dog"], [], ["St. Bernard"]]])
    said = ["Two DOGS", "my dog!", "a hot-dog", "dogma", "一只小狗", "柴犬", "小,狗", None, "saint st bernard", "热狗"]
    rows, keys = names.named(token_forms(pa.array(said, pa.string())))
    assert (names.first, names.size) == ([0, 2, 2], 5)
    assert set(zip(rows.tolist(), keys.tolist(), strict=True)) == {
        (1, 0), (1, 2), (2, 0), (2, 1), (2, 2), (4, 0), (5, 0), (6, 0), (8, 4),
    }  # fmt: skip


def test_numbers_of_classes_are_no_names() -> None:
    assert class_names(["0", "1", "seven"], [[["zero"], [""], ["Seven", "7"]]]) == [["zero"], [], ["seven", "7"]]


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("n.txt", "a\n", "names 1 classes, set 's' has 2"),
        ("n.toml", "classes = [['a']]", "names 1 classes, set 's' has 2"),
        ("n.toml", "classes = ['a', 'b']", "no `classes` that is a list of lists"),
        ("n.toml", "classes = [['a'], [1]]", "no `classes` that is a list of lists"),
        ("n.toml", "classes = [", "not valid TOML"),
        ("n.toml", "classes = " + "[" * 5000, "n.toml: lists in lists, too deep to read; give one list a class"),
        ("n.toml", "", "no `classes`"),
    ],
)
def test_a_file_of_names_that_does_not_fit(tmp_path: Path, name: str, written: str, said: str) -> None:
    (tmp_path / name).write_text(written)
    with pytest.raises(InputError, match=said) as caught:
        read_names(str(tmp_path / name), ["x", "y"], "s")
    assert len(str(caught.value).splitlines()) == 1


def test_files_of_names(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("狗 | 犬\n\n", "utf-8")
    (tmp_path / "n.toml").write_text("classes = [['狗', '犬'], []]", "utf-8")
    assert read_names(str(tmp_path / "n.txt"), ["dog", "cat"], "s") == [["狗", "犬"], [""]]
    assert read_names(str(tmp_path / "n.toml"), ["dog", "cat"], "s") == [["狗", "犬"], []]


# ---- real captions


@pytest.mark.skipif(not TABLES.exists(), reason="no real data")
def test_coco_in_conceptual_captions() -> None:
    """A tenth of COCO's captions and Conceptual Captions', which share no source: what is planted is found, and nothing else.

    All 25,014 against all 55,834 captions of Conceptual Captions, LAION and Tate: one pair, which is a generic sentence.
    """
    coco = pq.read_table(TABLES / "coco_val2017_captions.parquet")["caption"].to_pylist()[::10]
    with gzip.open(TABLES / "cc3m_val.tsv.gz", "rt", encoding="utf-8", newline="") as text:
        theirs = [row[0] for row in csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert (len(coco), len(theirs)) == (2502, 15833)
    index = CaptionIndex(read_captions(coco, len(coco)), TextRule())
    assert index.search(token_forms(pa.array(theirs))).rows.tolist() == []
    said = [f"{caption.upper()} | stock photo" for caption in coco]
    matches = index.search(token_forms(pa.array([*theirs, *said])))
    contained = matches.method == TEXT_METHODS.index("contained")
    found = set(zip(matches.text[contained].tolist(), (matches.rows[contained] - len(theirs)).tolist(), strict=True))
    written = read_captions(coco, len(coco))
    searched = [row for row in range(len(coco)) if written.sizes[row] >= TextRule().least]
    assert {(int(written.text[row]), row) for row in searched} <= found
    assert len(searched) > 2490


def test_captions_as_pages_write_them() -> None:
    """Entities, mojibake and what no table can hold are repaired on both sides, as in the captions of our own corpora."""
    page = "A man&#39;s brown dog &amp; a cat chase a red ball"
    ours = [
        "A man's brown dog & a cat chase a red ball",
        page,
        "\ud83d a dog runs in the park",
        "Der Hund l\u00c3\u00a4uft im Park umher",
    ]
    written = read_captions(ours, 4)
    assert written.text.tolist() == [0, 0, 2, 3]
    assert written.captions.to_pylist()[1:] == [
        ours[0],
        "\ufffd a dog runs in the park",
        "Der Hund l\u00e4uft im Park umher",
    ]


def test_captions_are_looked_at_in_blocks_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One character may become eighteen: of ten thousand long captions the forms would be more than an array holds."""
    monkeypatch.setattr(text_stage, "_BYTES", 100)
    monkeypatch.setattr(text_stage, "_ROWS", 4)
    said = ["x" * 40, None, "x" * 70, "x" * 500, None, "", "x", "x", "x", "x" * 100]
    blocks = list(text_stage._blocks(pa.chunked_array([pa.array(said[:4]), pa.array(said[4:], pa.string())])))
    assert blocks == [(0, 2), (2, 1), (3, 1), (4, 4), (8, 1), (9, 1)]
    assert list(text_stage._blocks(pa.chunked_array([], pa.string()))) == []
