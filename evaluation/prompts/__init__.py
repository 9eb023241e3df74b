"""What a class is called and the sentences around it: prompt templates and class names, ours and those that others published.

`general.txt`, `drawing.txt` and `plain.txt` are templates for any set. `sets/NAME.en.toml` and `.zh.toml` hold the class names of one
dataset, in the dataset's own order, and templates for it. Published sets are read from where they are, never copied: OpenAI's
`prompts.md`, JSON lists, and the ImageNet names and templates of an installed open_clip, whose file is parsed and not run.

A class may have several names: the embeddings of names x templates are averaged. The digest of what was used enters every result.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.config import PromptConfig
from pipeline.content.labelled import check_template
from pipeline.content.text import has_half
from pipeline.contracts import storage
from pipeline.contracts.config import digest_json
from pipeline.contracts.errors import InputError

_HERE = Path(__file__).parent
_MOST_BYTES = 4 << 20
_OPEN_CLIP = "open_clip:"
_OPEN_CLIP_TEMPLATES = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "imagenet_simple": "SIMPLE_IMAGENET_TEMPLATES"}

OPENAI_SECTIONS = {
    "birdsnap": "Birdsnap",
    "caltech101": "Caltech101",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "clevr_counts": "CLEVRCounts",
    "country211": "Country211",
    "dtd": "DescribableTextures",
    "eurosat": "EuroSAT",
    "fer2013": "FacialEmotionRecognition2013",
    "fgvc_aircraft": "FGVCAircraft",
    "flowers102": "Flowers102",
    "food101": "Food101",
    "gtsrb": "GTSRB",
    "hateful_memes": "HatefulMemes",
    "kinetics700": "Kinetics700",
    "kitti_distance": "KITTI",
    "mnist": "MNIST",
    "oxford_pets": "OxfordPets",
    "patch_camelyon": "PatchCamelyon",
    "rendered_sst2": "SST2",
    "resisc45": "RESISC45",
    "stanford_cars": "StanfordCars",
    "stl10": "STL10",
    "sun397": "SUN397",
    "ucf101": "UCF101",
    "voc2007": "PascalVOC2007",
}
"""Dataset → its section in openai/CLIP data/prompts.md."""

_OPENAI_ORDER: dict[str, tuple[int, ...]] = {
    "CLEVRCounts": (7, 0, 1, 2, 3, 4, 5, 6),
    "EuroSAT": (1, 6, 7, 8, 5, 9, 2, 0, 4, 3),
    "OxfordPets": (
        *(0, 5, 6, 7, 9, 11, 20, 23, 26, 27, 32, 33),  # the cats, whose files begin with a capital
        *(1, 2, 3, 4, 8, 10, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 24, 25, 28, 29, 30, 31, 34, 35, 36),
    ),
    "PascalVOC2007": (*range(10), 11, 12, 13, 14, 16, 17, 10, 15, 18, 19),
    "UCF101": (*range(34), 35, 34, *range(36, 46), 47, 46, *range(48, 101)),
}
"""Sections whose classes are not in the dataset's own order: the dataset's number of each. CLEVR's counts are sorted as words; EuroSAT's
folders are alphabetical; Pets are numbered without regard to case (openai/CLIP issue 346: 9.9 % instead of 87 %); VOC2007 has diningtable
and pottedplant in the alphabet; UCF101's classInd.txt has Hammering before HammerThrow and JumpingJack before JumpRope.
"""


@dataclass(frozen=True)
class Prompts:
    """Class names (one list a class; None: the set's own) and templates (None: another place has them), and where they are from."""

    source: str
    classes: list[list[str]] | None
    templates: list[str] | None

    @property
    def sha256(self) -> str:
        """Of names and templates, in order."""
        return digest_json({"classes": self.classes, "templates": self.templates})  # type: ignore[dict-item]


def shipped() -> list[str]:
    """Names of the template sets in this folder."""
    return sorted(path.stem for path in _HERE.glob("*.txt"))


def shipped_sets() -> list[str]:
    """Names of the sets with class names, like `cifar10.en`; also those with some of ImageNet's, like `imagenet_a.en`."""
    names = {path.stem for path in (_HERE / "sets").glob("*.toml")}
    languages = [language for language in ("en", "zh") if f"imagenet.{language}" in names]
    some = {f"{name}.{language}" for name in names if "." not in name for language in languages}
    return sorted({name for name in names if "." in name} | some)


def load_templates(config: PromptConfig) -> list[str]:
    """The templates that a config asks for, in order; InputError for a missing file or a line without its `{}`."""
    if config.templates:
        return list(config.templates)
    place = config.file or "general"
    own = _HERE / f"{place}.txt"
    if own.parent == _HERE and own.exists():
        return _checked(_lines(place, own.read_text("utf-8")), place).templates or []
    known = place.startswith(_OPEN_CLIP) or place in shipped_sets() or storage.exists(place.partition("#")[0])
    if not known:
        raise InputError(
            f"prompts.file: {place!r} is neither a file nor one of {', '.join(shipped())}; name one of them"
        )
    found = load_prompts(place).templates
    if found is None:
        raise InputError(f"prompts.file: {place!r} holds no template; write one sentence with {{}} a line")
    return found


def load_prompts(place: str, dataset: str | None = None) -> Prompts:
    """A set by name (`cifar10.zh`), `open_clip:imagenet`, or a file: TOML or JSON with `classes` and `templates`, a JSON list of either, a
    text of templates, or OpenAI's prompts.md (`FILE#SECTION`; the section of `dataset` where none is said).

    Raises InputError: nothing there, no names and no templates in it, a template without its `{}`, a class without a name.
    """
    if place in shipped_sets():
        own = _HERE / "sets" / f"{place}.toml"
        return _checked(_table(place, own.read_text("utf-8")) if own.exists() else _some_of_imagenet(place), place)
    if place.startswith(_OPEN_CLIP):
        return _checked(_open_clip(place.removeprefix(_OPEN_CLIP)), place)
    file, _, section = place.partition("#")
    if not storage.exists(file):
        raise InputError(
            f"prompts: {place!r} is neither a file nor a set of this project; those are named like {', '.join(shipped_sets()[:3])}"
        )
    if storage.size(file) > _MOST_BYTES:
        raise InputError(
            f"prompts: {file!r} has more than {_MOST_BYTES:,} bytes; name a list of class names or templates"
        )
    text = storage.read_text(file)
    if file.lower().endswith(".md"):
        found = _openai(file, text, section or OPENAI_SECTIONS.get(dataset or "", ""))
    elif file.lower().endswith(".toml"):
        found = _table(storage.name(file), text)
    else:
        found = _lines(storage.name(file), text)
    return _checked(found, place)


def check_classes(prompts: Prompts, classes: Sequence[str], place: str) -> None:
    """Refuse names that cannot be those of a set: another number, or the same names in another order.

    A wrong order costs all of the score and nothing else shows it. Only names that the two lists share can be compared.
    """
    if prompts.classes is None:
        return
    if len(prompts.classes) != len(classes):
        raise InputError(
            f"{place}: prompts {prompts.source!r} name {len(prompts.classes):,} classes, the set has {len(classes):,}; "
            "give those of this dataset"
        )
    number: dict[str, set[int]] = {}
    for place_in_list, names in enumerate(prompts.classes):
        for name in names:
            number.setdefault(_letters(name), set()).add(place_in_list)
    for ours, name in enumerate(classes):
        theirs = number.get(_letters(name), {ours})
        if ours not in theirs:
            raise InputError(
                f"{place}: class {ours} is {name!r}, which is class {min(theirs)} of prompts {prompts.source!r}; the two are in another "
                "order, give a list in the order of the set"
            )


def _letters(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


# ---- forms


def _lines(place: str, text: str) -> Prompts:
    """A text of templates, or JSON: a list of templates or of names, or a table of both."""
    if not text.lstrip().startswith(("[", "{")) or text.lstrip().startswith("{}"):
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return Prompts(place, None, lines)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"prompts: {place!r} is not valid JSON ({str(error)[:100]}); write a list of strings"
        ) from None
    if isinstance(value, dict):
        return _entries(place, value)
    strings = all(isinstance(entry, str) for entry in value)
    if not strings and not all(isinstance(entry, list) for entry in value):
        raise InputError(f"prompts: {place!r} must be a JSON list of strings only (or of lists of a class's names)")
    if strings and (not value or any("{" in entry for entry in value)):
        return Prompts(place, None, list(value))
    return _entries(place, {"classes": value})


def _table(place: str, text: str) -> Prompts:
    try:
        return _entries(place, tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"prompts: {place!r} is not valid TOML ({str(error)[:100]}); mend the line it names") from None


def _entries(place: str, table: dict[str, Any]) -> Prompts:
    classes, templates = table.get("classes"), table.get("templates")
    if classes is not None:
        if not isinstance(classes, list):
            raise InputError(f"prompts: {place!r}: classes is no list; write one name, or a list of names, a class")
        names = [entry if isinstance(entry, list) else [entry] for entry in classes]
        bad = next(
            (number for number, entry in enumerate(names) if not entry or not all(_is_text(name) for name in entry)),
            None,
        )
        if bad is not None:
            raise InputError(
                f"prompts: {place!r}: class {bad} has no name ({classes[bad]!r}); write one name, or a list of names"
            )
        classes = names
    if templates is not None and not (isinstance(templates, list) and all(_is_text(one) for one in templates)):
        raise InputError(f"prompts: {place!r}: templates is no list of sentences; write one with {{}} for each")
    return Prompts(place, classes, templates)


def _some_of_imagenet(place: str) -> Prompts:
    """ImageNet's names of the classes that a set has. One class made of several of them has the set's own name for it, in any language."""
    name, _, language = place.partition(".")
    whole = load_prompts(f"imagenet.{language}")
    table = tomllib.loads((_HERE / "sets" / f"{name}.toml").read_text("utf-8"))
    names = whole.classes or []
    chosen = [
        names[several[0]] if len(several) == 1 else [label.replace("_", " ")]
        for several, label in zip(table["indices"], table["labels"], strict=True)
    ]
    return Prompts(place, chosen, whole.templates)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _openai(place: str, text: str, section: str) -> Prompts:
    """One section of openai/CLIP data/prompts.md: Python lists in a block of code."""
    blocks = {block.split("\n", 1)[0].strip(): block for block in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}
    if section not in blocks:
        said = f"no section {section!r}" if section else "a section for each dataset"
        raise InputError(f"prompts: {place!r} has {said}; write FILE#SECTION, with one of {', '.join(blocks)}")
    table: dict[str, Any] = {}
    for key in ("classes", "templates"):
        literal = re.search(rf"^{key} = (\[.*?^\])", blocks[section], re.DOTALL | re.MULTILINE)
        if literal is None:
            raise InputError(f"prompts: {place!r}, section {section!r}, has no list {key}; restore the file")
        try:
            table[key] = ast.literal_eval(literal[1])
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise InputError(
                f"prompts: {place!r}, section {section!r}: {key} is no list of strings; restore the file"
            ) from None
    found = _entries(f"{storage.name(place)}#{section}", table)
    order = _OPENAI_ORDER.get(section)
    if order is None or found.classes is None or len(found.classes) != len(order):
        return found
    return Prompts(
        found.source, [names for _, names in sorted(zip(order, found.classes, strict=True))], found.templates
    )


def _open_clip(name: str) -> Prompts:
    """ImageNet's names and templates of an installed open_clip: literals of its file `zero_shot_metadata.py`, read without importing
    torch.
    """
    wanted = _OPEN_CLIP_TEMPLATES.get(name)
    if wanted is None:
        raise InputError(f"prompts: open_clip has no {name!r}; it has {', '.join(_OPEN_CLIP_TEMPLATES)}")
    spec = importlib.util.find_spec("open_clip")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    if folder is None or not (folder / "zero_shot_metadata.py").exists():
        raise InputError(f"prompts: '{_OPEN_CLIP}{name}' needs the package open_clip_torch; install it or name a file")
    values = {
        target.id: node.value
        for node in ast.parse((folder / "zero_shot_metadata.py").read_text("utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    classes, templates = values.get("IMAGENET_CLASSNAMES"), values.get(wanted)
    if not isinstance(classes, (ast.Tuple, ast.List)) or not isinstance(templates, (ast.Tuple, ast.List)):
        raise InputError(f"prompts: this version of open_clip has no {wanted} beside IMAGENET_CLASSNAMES; name a file")
    sentences = [_sentence(entry.body) for entry in templates.elts if isinstance(entry, ast.Lambda)]
    return _entries(f"{_OPEN_CLIP}{name}", {"classes": list(ast.literal_eval(classes)), "templates": sentences})


def _sentence(body: ast.expr) -> str:
    """The template of `lambda c: f'a photo of a {c}.'`."""
    parts = body.values if isinstance(body, ast.JoinedStr) else []
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


def _checked(found: Prompts, place: str) -> Prompts:
    if not found.classes and not found.templates:
        raise InputError(f"prompts: {place!r} holds no template; write one sentence with {{}} a line")
    texts = [*(found.templates or []), *(name for names in found.classes or [] for name in names)]
    broken = next((text for text in texts if has_half(text)), None)
    if broken is not None:
        raise InputError(f"prompts: {place!r}: {broken[:80]!r} has half of a character; write it again as UTF-8")
    for template in found.templates or []:
        try:
            check_template(template)
        except ValueError as error:
            raise InputError(f"prompts: {place!r}: {error}") from None
    return found
