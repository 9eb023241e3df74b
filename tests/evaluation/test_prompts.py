"""Prompts: every form that is read, what is published where it is present, and names that cannot be a set's."""

import json
import sys
from pathlib import Path

import pytest

from evaluation import prompts
from evaluation.config import PromptConfig
from evaluation.datasets.catalogue import catalogue
from evaluation.datasets.lists import VOC_CLASSES
from evaluation.prompts import (
    OPENAI_SECTIONS,
    Prompts,
    check_classes,
    load_prompts,
    load_templates,
    shipped,
    shipped_sets,
)
from pipeline.contracts.errors import InputError
from tests.evaluation.test_prompt_sets import EUROSAT

SECTION = """# Prompts

## EuroSAT

```bash
classes = [
    'forest',
    'permanent crop land',
    'residential buildings or homes or apartments',
    'river',
    'pasture land',
    'lake or sea',
    'brushland or shrubland',
    'annual crop land',
    'industrial buildings or commercial buildings',
    'highway or road',
]

templates = [
    'a centered satellite photo of {}.',
]
```

## FacialEmotionRecognition2013

```bash
classes = [
    ['angry'],
    ['happy', 'smiling'],
]

templates = [
    'a photo of a {} looking face.',
    'a photo of a face looking {}.',
]
```
"""


def test_templates(tmp_path: Path) -> None:
    assert shipped() == ["drawing", "general", "plain"]
    for name in shipped():
        assert all(template.count("{}") == 1 for template in load_templates(PromptConfig(file=name)))
    own = tmp_path / "own.json"
    own.write_text(json.dumps(["one {}", "two {}"]), "utf-8")
    assert load_templates(PromptConfig(file=str(own))) == ["one {}", "two {}"]
    own.write_text("one {}\n# a comment\n\ntwo {}.\n", "utf-8")
    assert load_templates(PromptConfig(file=str(own))) == ["one {}", "two {}."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no place", "exactly once"),
        ("{} and {}", "exactly once"),
        ("a {name}", "exactly once"),
        ("", "no template"),
        ("[1]", "list of strings"),
    ],
)
def test_bad_templates(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.txt").write_text(text, "utf-8")
    with pytest.raises(InputError, match=said):
        load_templates(PromptConfig(file=str(tmp_path / "bad.txt")))
    with pytest.raises(InputError, match="neither a file nor one of drawing, general, plain"):
        load_templates(PromptConfig(file="absent"))


def test_names_and_templates_in_one_file(tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    table.write_text('classes = [["angry", "mad"], "calm"]\ntemplates = ["a {} face"]\nlanguage = "en"\n', "utf-8")
    found = load_prompts(str(table))
    assert (found.classes, found.templates, found.source) == ([["angry", "mad"], ["calm"]], ["a {} face"], "mine.toml")
    same = tmp_path / "mine.json"
    same.write_text(json.dumps({"classes": [["angry", "mad"], "calm"], "templates": ["a {} face"]}), "utf-8")
    assert load_prompts(str(same)).sha256 == found.sha256
    for changed in (
        'classes = [["mad", "angry"], "calm"]',
        'classes = ["calm", ["angry", "mad"]]',
        'classes = ["angry", "calm"]',
    ):
        table.write_text(changed + '\ntemplates = ["a {} face"]\n', "utf-8")
        assert load_prompts(str(table)).sha256 != found.sha256
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["angry", ["calm", "still"]]), "utf-8")
    with pytest.raises(InputError, match="list of strings only"):
        load_prompts(str(names))
    names.write_text(json.dumps(["angry", "calm"]), "utf-8")
    assert load_prompts(str(names)).classes == [["angry"], ["calm"]]
    assert load_prompts(str(names)).templates is None


def test_openais_form(tmp_path: Path) -> None:
    """One section, by name or by dataset; EuroSAT's list is put into the order of the dataset's folders."""
    file = tmp_path / "prompts.md"
    file.write_text(SECTION, "utf-8")
    found = load_prompts(f"{file}#FacialEmotionRecognition2013")
    assert found.classes == [["angry"], ["happy", "smiling"]]
    assert found.templates == ["a photo of a {} looking face.", "a photo of a face looking {}."]
    assert found.source == "prompts.md#FacialEmotionRecognition2013"
    folders = [
        "AnnualCrop",
        "Forest",
        "HerbaceousVegetation",
        "Highway",
        "Industrial",
        "Pasture",
        "PermanentCrop",
        "Residential",
        "River",
        "SeaLake",
    ]
    euro = load_prompts(str(file), "eurosat")
    assert euro.classes is not None
    assert all(word in names[0] for word, names in zip(EUROSAT, euro.classes, strict=True))
    check_classes(euro, folders, "here")
    with pytest.raises(InputError, match="has no section 'Nowhere'; write FILE#SECTION, with one of EuroSAT, Facial"):
        load_prompts(f"{file}#Nowhere")
    with pytest.raises(InputError, match="a section for each dataset"):
        load_prompts(str(file))
    file.write_text(SECTION.replace("['angry']", "__import__('os').getcwd()"), "utf-8")
    with pytest.raises(InputError, match="classes is no list of strings"):
        load_prompts(f"{file}#FacialEmotionRecognition2013")


def test_openais_published_file(real_data: Path) -> None:
    place = real_data / "prompts"
    if not (place / "openai_prompts.md").is_file():
        pytest.skip(f"no OpenAI prompts in {place}")
    for dataset, section in OPENAI_SECTIONS.items():
        found = load_prompts(str(place / "openai_prompts.md"), dataset)
        assert found.source == f"openai_prompts.md#{section}"
        assert found.classes is not None
        assert len(found.classes) == catalogue()[dataset].classes
    actions = load_prompts(str(place / "openai_prompts.md"), "ucf101").classes
    assert actions is not None
    assert [names[0] for names in actions[34:36] + actions[46:48]] == [
        "Hammering",
        "Hammer Throw",
        "Jumping Jack",
        "Jump Rope",
    ]
    pets = load_prompts(str(place / "openai_prompts.md"), "oxford_pets").classes
    assert pets is not None
    assert [names[0].casefold() for names in pets] == sorted(names[0].casefold() for names in pets)
    objects = load_prompts(str(place / "openai_prompts.md"), "voc2007").classes
    assert [names[0] for names in objects or []] == VOC_CLASSES
    counts = load_prompts(str(place / "openai_prompts.md"), "clevr_counts").classes
    assert counts == [[str(count)] for count in range(3, 11)]
    emotions = load_prompts(str(place / "openai_prompts.md"), "fer2013").classes
    assert emotions is not None
    assert emotions[3] == ["happy", "smiling"]
    names = load_prompts(str(place / "openai_imagenet_classes.json"))
    assert (len(names.classes or []), names.templates) == (1000, None)
    assert len(load_prompts(str(place / "openai_imagenet_templates.json")).templates or []) == 80


def test_open_clip_is_parsed_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its form: lambdas of f-strings and a tuple of names, in a package whose import would fail."""
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "zero_shot_metadata.py").write_text(
        "OPENAI_IMAGENET_TEMPLATES = (\n    lambda c: f'a bad photo of a {c}.',\n    lambda c: f'a {c} in a video game.',\n)\n"
        "SIMPLE_IMAGENET_TEMPLATES = (lambda c: f'itap of a {c}.',)\n"
        "IMAGENET_CLASSNAMES = ('tench', \"potter's wheel\")\nraise RuntimeError('run')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    found = load_prompts("open_clip:imagenet")
    assert found.templates == ["a bad photo of a {}.", "a {} in a video game."]
    assert found.classes == [["tench"], ["potter's wheel"]]
    assert load_prompts("open_clip:imagenet_simple").templates == ["itap of a {}."]
    with pytest.raises(InputError, match="has no 'food'; it has imagenet, imagenet_simple"):
        load_prompts("open_clip:food")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InputError, match="needs the package open_clip_torch; install it or name a file"):
        load_prompts("open_clip:imagenet")


def test_the_projects_own_sets() -> None:
    """Those that are here fit their dataset and have a twin in the other language."""
    for name in shipped_sets():
        dataset, _, language = name.partition(".")
        found = load_prompts(name)
        assert found.templates
        assert found.classes is not None
        assert len(found.classes) == catalogue()[dataset].classes
        assert f"{dataset}.{'zh' if language == 'en' else 'en'}" in shipped_sets()


def test_sets_with_some_of_imagenets_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "imagenet.zh.toml").write_text(
        'classes = [["丁鲷", "鲷"], "金鱼", "大白鲨"]\ntemplates = ["{}的照片"]\n', "utf-8"
    )
    (folder / "shift.toml").write_text(
        'indices = [[2], [0], [0, 1]]\nlabels = ["shark", "tench", "any_fish"]\n', "utf-8"
    )
    monkeypatch.setattr(prompts, "_HERE", tmp_path)
    assert shipped_sets() == ["imagenet.zh", "shift.zh"]
    found = load_prompts("shift.zh")
    assert (found.classes, found.templates) == ([["大白鲨"], ["丁鲷", "鲷"], ["any fish"]], ["{}的照片"])


def test_names_of_another_set_are_refused() -> None:
    bulldogs = Prompts("p", [["american bulldog"], ["Beagle", "small dog"], ["Abyssinian"]], ["{}"])
    check_classes(bulldogs, ["american_bulldog", "beagle", "x"], "set 'pets'")
    check_classes(Prompts("p", None, ["{}"]), ["any", "thing"], "set 'pets'")
    with pytest.raises(InputError, match="name 3 classes, the set has 2; give those of this dataset"):
        check_classes(bulldogs, ["a", "b"], "set 'pets'")
    with pytest.raises(
        InputError, match="class 0 is 'Abyssinian', which is class 2 of prompts 'p'; the two are in another order"
    ):
        check_classes(bulldogs, ["Abyssinian", "american_bulldog", "beagle"], "set 'pets'")
    twice = Prompts("p", [["missile"], ["sunglasses"], ["missile"]], ["{}"])
    check_classes(twice, ["missile", "sunglasses", "missile"], "set 'x'")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "classes = [[]]", "class 0 has no name"),
        ("a.toml", 'classes = ["x", 3]', "class 1 has no name"),
        ("a.toml", 'classes = "x"', "classes is no list"),
        ("a.toml", "templates = [3]", "templates is no list of sentences"),
        ("a.toml", 'classes = ["x"]\ntemplates = ["none"]', "exactly once"),
        ("a.toml", "classes = ", "not valid TOML"),
        ("a.toml", "classes = " + "[" * 10_000, "not valid TOML"),
        ("a.toml", 'title = "x"', "holds no template"),
        ("a.json", r'[["cat", "d\ud800"]]', "half of a character"),
        ("a.json", r'["a \udc00 {}"]', "half of a character"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[" * 99999, "not valid JSON"),
    ],
)
def test_bad_prompts(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(InputError, match=said) as caught:
        load_prompts(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="neither a file nor a set of this project"):
        load_prompts("cifar10.fr")
