"""Vocabulary files: OpenAI's published merges, and a JSON file of our own that `train_vocabulary` writes.

Files are read as data only, with a bound on their size before and after decompression.
"""

import gzip
import importlib.util
import io
import itertools
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from pipeline.contracts import storage
from pipeline.contracts.cli import Progress
from pipeline.contracts.errors import InputError
from trainer.config import MOST_IDS
from trainer.tokenizer.bpe import FIXED_IDS
from trainer.tokenizer.training import Merges, WordCounts, learn_merges

DEFAULT_SIZE = 49_152
"""Ids of a vocabulary of one's own where nothing else is said: the paper's number."""
OPENAI_VOCAB_SIZE = 49_408
_OPENAI_FILE = "bpe_simple_vocab_16e6.txt.gz"
OPENAI_SOURCE = f"clip/{_OPENAI_FILE} of github.com/openai/CLIP"
_FORMAT = "byte-pair merges, version 1"
_FILE_LIMIT = 64 << 20
_MOST_MARKS = 4 * MOST_IDS
"""Brackets and commas in a file of one's own: of the largest vocabulary three for each merge, and those in its pieces."""
_CAPTIONS_AT_ONCE = 4096


def openai_merges(path: str | None) -> tuple[Merges, str]:
    """The 48,894 merges of the released models, and where they were read.

    path: OpenAI's merges file, plain or gzip; None takes the copy that an installed open_clip carries.
    Raises InputError.
    """
    path = path or installed_copy()
    if path is None:
        raise InputError(
            f"tokenizer vocab: None, and no installed open_clip has {_OPENAI_FILE!r}; "
            f"give the path of that file, {OPENAI_SOURCE}"
        )
    data = storage.read_bytes(path, limit=_FILE_LIMIT)
    try:
        text = (_gunzip(data, path) if data.startswith(b"\x1f\x8b") else data).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; give OpenAI's {_OPENAI_FILE!r}") from None
    wanted = OPENAI_VOCAB_SIZE - FIXED_IDS
    # The first line names the format's version; what follows the last merge in use was never part of the
    # vocabulary.
    lines = text.split("\n")[1 : 1 + wanted]
    merges: Merges = []
    for number, line in enumerate(lines, start=2):
        parts = line.split()
        if len(parts) != 2:
            raise InputError(f"{path}: line {number} is {line[:80]!r}, not a pair; give OpenAI's {_OPENAI_FILE!r}")
        merges.append((parts[0], parts[1]))
    if len(merges) != wanted:
        raise InputError(f"{path}: {len(merges):,} merges, not {wanted:,}; give OpenAI's {_OPENAI_FILE!r}")
    return merges, path


def installed_copy() -> str | None:
    """The copy of OpenAI's file that an installed open_clip carries; None where there is none."""
    spec = importlib.util.find_spec("open_clip")
    candidate = Path(spec.origin).parent / _OPENAI_FILE if spec is not None and spec.origin else None
    return str(candidate) if candidate is not None and candidate.is_file() else None


def _gunzip(data: bytes, path: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            text = stream.read(_FILE_LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: broken gzip file ({error}); download it again") from None
    if len(text) > _FILE_LIMIT:
        raise InputError(f"{path}: more than {_FILE_LIMIT:,} bytes unpacked; give OpenAI's {_OPENAI_FILE!r}")
    return text


def own_merges(path: str) -> Merges:
    """The merges of a file that `train_vocabulary` wrote. Raises InputError where it is not one."""
    data = storage.read_bytes(path, limit=_FILE_LIMIT)
    # Every value but the first of all follows one of these marks, and takes up to thirty times the memory of its text.
    marks = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if marks > _MOST_MARKS:
        raise InputError(
            f"{path}: {marks:,} brackets and commas, more than a vocabulary of {MOST_IDS:,} ids has; train the vocabulary again"
        )
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != _FORMAT or not isinstance(found.get("merges"), list):
        raise InputError(
            f"{path}: not a vocabulary of format {_FORMAT!r}; give a file that the trainer's train_vocabulary wrote, "
            "or tokenizer.kind = 'openai' for OpenAI's merges"
        )
    merges: Merges = []
    for number, pair in enumerate(found["merges"], start=1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(piece, str) for piece in pair)):
            raise InputError(f"{path}: merge {number} is {pair!r:.80}, not two strings; train the vocabulary again")
        merges.append((pair[0], pair[1]))
    return merges


def train_vocabulary(texts: Iterable[str], size: int, path: str) -> int:
    """Train a vocabulary of at most `size` ids on `texts`, write it to `path`, return the number of ids it
    has.

    514 ids are fixed (bytes, bytes at a word's end, end marks), the others are merges. Pairs seen once are
    not merged, so a small corpus gives fewer ids than asked for: build the model with the returned number.
    Deterministic in the multiset of the texts as long as they have no more than a million distinct words,
    else in their sequence; memory is bounded (`WordCounts`). Raises InputError if size < 514 or > MOST_IDS.
    """
    if size < FIXED_IDS:
        raise InputError(f"tokenizer size: {size!r} is less than the {FIXED_IDS} ids that are always there; use more")
    if size > MOST_IDS:
        raise InputError(
            f"tokenizer size: {size!r} is more than {MOST_IDS:,}, the number of words that are counted; use less"
        )
    counts = WordCounts()
    with Progress(None, "captions", "counting words", summary=False) as progress:
        remaining = iter(texts)
        while captions := list(itertools.islice(remaining, _CAPTIONS_AT_ONCE)):
            counts.add(captions)
            progress.update(len(captions))
    with Progress(size - FIXED_IDS, "merges", "merging", summary=False) as progress:
        merges = learn_merges(counts.counts(), size - FIXED_IDS, progress)
    data = json.dumps({"format": _FORMAT, "merges": merges}, ensure_ascii=False, separators=(",", ":"))
    storage.write_atomic(path, data.encode())
    return FIXED_IDS + len(merges)
