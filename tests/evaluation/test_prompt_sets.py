"""Class names and templates of the paper's datasets: whole, in the datasets' own order, the same classes in both languages."""

import ast
import hashlib
import json
import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.prompts import OPENAI_SECTIONS
from pipeline.content.labelled import check_template

SETS = Path(__file__).resolve().parents[2] / "evaluation" / "prompts" / "sets"
LANGUAGES = ("en", "zh")

CLASSES = {
    "birdsnap": 500,
    "caltech101": 102,
    "cifar10": 10,
    "cifar100": 100,
    "clevr_counts": 8,
    "country211": 211,
    "dtd": 47,
    "eurosat": 10,
    "fer2013": 7,
    "fgvc_aircraft": 100,
    "flowers102": 102,
    "food101": 101,
    "gtsrb": 43,
    "hateful_memes": 2,
    "imagenet": 1000,
    "kinetics700": 700,
    "kitti_distance": 4,
    "mnist": 10,
    "oxford_pets": 37,
    "patch_camelyon": 2,
    "rendered_sst2": 2,
    "resisc45": 45,
    "stanford_cars": 196,
    "stl10": 10,
    "sun397": 397,
    "ucf101": 101,
    "voc2007": 20,
}
SUBSETS = {"imagenet_a": 200, "imagenet_r": 200, "imagenet_vid": 30, "objectnet": 113, "ytbb": 24}


def read(name: str) -> dict[str, Any]:
    return tomllib.loads((SETS / f"{name}.toml").read_text("utf-8"))


def names_of(name: str, language: str) -> list[list[str]]:
    classes: list[list[str]] = read(f"{name}.{language}")["classes"]
    return classes


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= sign <= "\u9fff" for sign in text)


# ---- the files


def test_the_folder_holds_these_sets_and_no_other() -> None:
    expected = {f"{name}.{language}.toml" for name in CLASSES for language in LANGUAGES}
    expected |= {f"{name}.toml" for name in SUBSETS} | {"SHA256SUMS"}
    assert {path.name for path in SETS.iterdir()} == expected


def test_the_published_hashes_are_those_of_the_files() -> None:
    """A change of a name or a sentence changes scores: it is made twice, here and in SHA256SUMS."""
    lines = [line.split("  ") for line in (SETS / "SHA256SUMS").read_text().splitlines()]
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in SETS.glob("*.toml")}
    assert {name: digest for digest, name in lines} == found
    assert [name for _, name in lines] == sorted(found)


@pytest.mark.parametrize("path", sorted(SETS.glob("*.toml")), ids=lambda path: path.name)
def test_the_text_is_tidy(path: Path) -> None:
    text = path.read_bytes().decode("utf-8")
    assert text == unicodedata.normalize("NFC", text)
    assert text.endswith("\n")
    assert not re.search(r"[ \t\r]$|\t", text, re.MULTILINE)
    assert list(tomllib.loads(text)) == sorted(tomllib.loads(text))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_a_name_that_no_other_has(name: str, language: str) -> None:
    table = read(f"{name}.{language}")
    assert set(table) - {"notes"} == {"classes", "dataset", "language", "templates"}
    assert (table["dataset"], table["language"]) == (name, language)
    assert len(table["classes"]) == CLASSES[name]
    assert all(table["classes"])
    names = [text for names in table["classes"] for text in names]
    assert all(text and text == " ".join(text.split()) and not re.search(r"[{}_|=]", text) for text in names)
    repeated = [text for text, n in Counter(text.casefold() for text in names).items() if n > 1]
    assert not repeated


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", CLASSES)
def test_templates_are_sentences_with_one_place_for_a_name(name: str, language: str) -> None:
    templates = read(f"{name}.{language}")["templates"]
    assert len(templates) >= 4
    assert len(set(templates)) == len(templates)
    for template in templates:
        check_template(template)
        assert template == template.strip()
        assert is_chinese(template) == (language == "zh") or template in ("{}.", "{}。")


# ---- the two languages


@pytest.mark.parametrize("name", CLASSES)
def test_names_are_in_their_language(name: str) -> None:
    """Numbers and the types of aircraft that Chinese writes in Latin letters aside."""
    assert not any(is_chinese(text) for names in names_of(name, "en") for text in names)
    foreign = [names[0] for names in names_of(name, "zh") if not is_chinese(names[0])]
    assert foreign == {"mnist": [str(n) for n in range(10)], "fgvc_aircraft": ["ATR-42", "ATR-72"]}.get(name, [])


@pytest.mark.parametrize("name", CLASSES)
def test_numbers_in_names_are_the_same_in_both_languages(name: str) -> None:
    """A line that slipped in one of the languages shows where names hold numbers: years, models, speed limits."""
    pairs = zip(names_of(name, "en"), names_of(name, "zh"), strict=True)
    differing = [
        (en[0], zh[0]) for en, zh in pairs if sorted(re.findall(r"\d+", en[0])) != sorted(re.findall(r"\d+", zh[0]))
    ]
    assert not differing


# ---- the order, against what OpenAI published


def as_one_word(name: str) -> str:
    return name.casefold().replace(" ", "")


EUROSAT = (
    "annual",
    "forest",
    "shrubland",
    "highway",
    "industrial",
    "pasture",
    "permanent",
    "residential",
    "river",
    "sea",
)

LABEL_ORDER: dict[str, Callable[[str], Any]] = {
    "clevr_counts": int,
    "eurosat": lambda name: next(n for n, word in enumerate(EUROSAT) if re.search(rf"\b{word}\b", name)),
    "oxford_pets": as_one_word,
    "ucf101": as_one_word,
    "voc2007": as_one_word,
}
"""Where OpenAI's list is not in the order of the dataset's labels: the key that sorts it so."""

UNLIKE: dict[str, set[int]] = {
    "gtsrb": {9, 10, 11, 15, 18, 32, 41},  # described by what is drawn, not by what it means
    # Other words for the same (oxcart and bullock cart), or a rival that shares a word (eft and smooth newt).
    "imagenet": {27, 54, 236, 270, 505, 520, 607, 667, 670, 690, 744, 770, 782, 836, 842, 914},
    "kitti_distance": {0, 1, 2, 3},
}
"""Classes whose names share too few words with OpenAI's; their order was compared by eye."""


def published(folder: Path, name: str) -> tuple[list[list[str]], list[str]]:
    """OpenAI's class names (one or several each, in the order of the labels) and templates."""
    place = folder / "prompts"
    if not (place / "openai_prompts.md").is_file():
        pytest.skip(f"no OpenAI prompts in {place}")
    if name == "imagenet":
        classes = json.loads((place / "openai_imagenet_classes.json").read_text())
        templates = json.loads((place / "openai_imagenet_templates.json").read_text())
    else:
        page = (
            (place / "openai_prompts.md")
            .read_text()
            .partition(f"\n## {OPENAI_SECTIONS[name]}\n")[2]
            .partition("\n## ")[0]
        )
        lists = [re.search(rf"{key} = (\[.*?\n\])", page, re.DOTALL) for key in ("classes", "templates")]
        classes, templates = [ast.literal_eval(found[1]) for found in lists if found is not None]
    if name in LABEL_ORDER:
        classes.sort(key=LABEL_ORDER[name])
    return [entry if isinstance(entry, list) else [entry] for entry in classes], templates


def words(name: str) -> frozenset[str]:
    """Lower case, without accents, apostrophes and the plural's s."""
    plain = unicodedata.normalize("NFKD", name.casefold().replace("'", ""))
    found = re.findall(r"[a-z0-9]+", "".join(sign for sign in plain if not unicodedata.combining(sign)))
    return frozenset(word.rstrip("s") or word for word in found) - {"a", "an", "the", "of", "in", "on", "with", "and"}


def likeness(ours: list[str], theirs: list[str]) -> float:
    """The largest share of common words (Jaccard) of any two names; 1 for names that differ in spaces only."""
    return max(
        1.0 if as_one_word(x) == as_one_word(y) else len(words(x) & words(y)) / len(words(x) | words(y))
        for x in ours
        for y in theirs
    )


@pytest.mark.parametrize("name", CLASSES)
def test_the_order_is_that_of_the_labels(name: str, real_data: Path) -> None:
    """Class by class a name like OpenAI's; and no other class of the set is more like it."""
    theirs, _ = published(real_data, name)
    ours = names_of(name, "en")
    assert len(ours) == len(theirs)
    holders: dict[str, set[int]] = {}
    for number, names in enumerate(ours):
        for word in frozenset().union(*map(words, names)):
            holders.setdefault(word, set()).add(number)
    wrong = []
    for number, names in enumerate(theirs):
        if number in UNLIKE.get(name, ()):
            continue
        own = likeness(ours[number], names)
        rivals = set().union(*(holders.get(word, set()) for entry in names for word in words(entry))) - {number}
        better = [ours[rival][0] for rival in rivals if likeness(ours[rival], names) > own]
        if own < 0.3 or better:
            wrong.append((number, ours[number][0], names[0], better))
    assert not wrong


@pytest.mark.parametrize("name", CLASSES)
def test_templates_are_our_own(name: str, real_data: Path) -> None:
    """Only the shortest phrase, which everyone writes, may be one of OpenAI's too."""
    _, theirs = published(real_data, name)
    assert set(read(f"{name}.en")["templates"]) & set(theirs) <= {"a photo of a {}.", "a photo of {}."}


def test_imagenet_in_chinese_is_in_order(real_data: Path) -> None:
    """Another translation of the 1,000 classes: most names share a character with it, hardly any when one list is shifted."""
    place = real_data / "tokenizers" / "imagenet_classes_zh.txt"
    if not place.is_file():
        pytest.skip(f"no {place}")
    theirs = [line.strip() for line in place.read_text("utf-8").splitlines() if line.strip()]
    ours = names_of("imagenet", "zh")
    assert len(theirs) == len(ours)

    def shared(shift: int) -> float:
        pairs = [(ours[n], theirs[(n + shift) % len(ours)]) for n in range(len(ours))]
        return sum(bool(set("".join(names)) & set(other)) for names, other in pairs) / len(pairs)

    assert shared(0) > 0.85
    assert max(shared(-1), shared(1)) < 0.5


# ---- the shifts, as classes of ImageNet


@pytest.mark.parametrize("name", SUBSETS)
def test_a_subset_names_classes_of_imagenet_once(name: str) -> None:
    """The counts are those of Taori et al.'s testbed: ImageNet's validation set on these classes, 50 pictures each."""
    table = read(name)
    assert set(table) == {"dataset", "indices", "labels", "subset_of"}
    assert (table["dataset"], table["subset_of"]) == (name, "imagenet")
    assert len(table["indices"]) == len(table["labels"]) == len(set(table["labels"])) == SUBSETS[name]
    numbers = [number for entry in table["indices"] for number in entry]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) <= set(range(CLASSES["imagenet"]))
    validation = {
        "imagenet_a": 10_000,
        "imagenet_r": 10_000,
        "imagenet_vid": 14_400,
        "objectnet": 6_250,
        "ytbb": 11_550,
    }
    assert 50 * len(numbers) == validation[name]


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_the_folders_of_a_and_r_are_in_the_order_of_their_classes(name: str) -> None:
    """Both are WordNet identifiers, sorted; the same identifier is the same class in both."""
    table = read(name)
    assert table["labels"] == sorted(table["labels"])
    assert table["indices"] == sorted(table["indices"])
    both = [dict(zip(t["labels"], t["indices"], strict=True)) for t in (read("imagenet_a"), read("imagenet_r"))]
    assert all(both[0][label] == both[1][label] for label in both[0].keys() & both[1].keys())


def test_the_two_video_sets_group_the_same_classes() -> None:
    vid, ytbb = [dict(zip(t["labels"], t["indices"], strict=True)) for t in (read("imagenet_vid"), read("ytbb"))]
    common = vid.keys() & ytbb.keys()
    assert len(common) == 12
    assert all(vid[label] == ytbb[label] for label in common)
    assert set(ytbb["cat"]) - set(vid["domestic cat"]) == {286, 287}  # cougar and lynx
    assert set(ytbb["boat"]) < set(vid["watercraft"])
    assert sorted(label for label, entry in ytbb.items() if not entry) == [
        "cow",
        "giraffe",
        "none",
        "skateboard",
        "toilet",
    ]


@pytest.mark.parametrize("name", ["imagenet_vid", "objectnet", "ytbb"])
def test_groups_hold_what_their_label_says(name: str) -> None:
    """A word of the label is in a name of one of the classes, or the classes are listed here."""
    told = {
        "airplane": ["airliner"],
        "antelope": ["hartebeest", "impala", "gazelle"],
        "bird": None,
        "boat": None,
        "bus": ["minibus", "school bus", "trolleybus"],
        "car": None,
        "cattle": ["ox"],
        "coffee_french_press": ["espresso machine"],
        "dog": None,
        "butchers_knife": ["cleaver"],
        "dress": ["gown"],
        "dress_shoe_men": ["loafer shoe"],
        "hand_towel_or_rag": ["dishcloth"],
        "match": ["matchstick"],
        "motorcycle": ["moped"],
        "person": ["baseball player", "bridegroom", "scuba diver"],
        "potted plant": ["daisy", "yellow lady's slipper"],
        "stuffed_animal": ["teddy bear"],
        "sweater": ["sweatshirt"],
        "tv": ["television"],
        "watercraft": None,
        "weight_exercise": ["dumbbell"],
        "winter_glove": ["mitten"],
    }
    table, imagenet = read(name), names_of("imagenet", "en")
    for label, indices in zip(table["labels"], table["indices"], strict=True):
        names = [imagenet[index] for index in indices]
        if label in told:
            assert told[label] is None or [entry[0] for entry in names] == told[label]
        elif indices:
            found = frozenset().union(*(words(text) for entry in names for text in entry))
            assert words(label.replace("_", " ")) & found, (label, names)
