"""Prompt templates: sentences with `{}` where a class name goes, kept as plain text files beside this one.

`general.txt`, `drawing.txt` and `plain.txt` are our own. A published set (OpenAI's 80 for ImageNet, say) is read from a file
that the user names: one template a line, or a JSON list of strings.
"""

from __future__ import annotations

import json
from pathlib import Path

from evaluation.config import PromptConfig
from pipeline.content.labelled import check_template
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

_HERE = Path(__file__).parent


def shipped() -> list[str]:
    """Names of the sets in this folder."""
    return sorted(path.stem for path in _HERE.glob("*.txt"))


def load_templates(config: PromptConfig) -> list[str]:
    """The templates that a config asks for, in order; InputError for a missing file or a line without its `{}`."""
    if config.templates:
        return list(config.templates)
    own = _HERE / f"{config.file}.txt"
    if own.parent == _HERE and own.exists():
        place, text = config.file, own.read_text("utf-8")
    elif storage.exists(config.file):
        place, text = config.file, storage.read_text(config.file)
    else:
        raise InputError(
            f"prompts.file: {config.file!r} is neither a file nor one of {', '.join(shipped())}; name one of them"
        )
    templates = _parse(place, text)
    if not templates:
        raise InputError(f"prompts.file: {place!r} holds no template; write one sentence with {{}} a line")
    for template in templates:
        try:
            check_template(template)
        except ValueError as error:
            raise InputError(f"prompts.file: {place!r}: {error}") from error
    return templates


def _parse(place: str, text: str) -> list[str]:
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"prompts.file: {place!r} is not valid JSON ({error.msg}); write a list of strings") from error
    if not all(isinstance(entry, str) for entry in entries):
        raise InputError(f"prompts.file: {place!r} must be a JSON list of strings only")
    return [str(entry) for entry in entries]
