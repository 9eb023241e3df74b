"""Vocabulary files: OpenAI's published merges, and a JSON file of our own that `train_vocabulary` writes.

Training counts the words of a corpus once and then merges the most frequent pair of neighbours again and
again, on counts that are kept up to date pair by pair. Nothing depends on the order of the captions or on a
hash: equal counts are decided by the pair's text. Files are read as data only, with a bound on their size
before and after decompression.
"""

import gzip
import heapq
import importlib.util
import io
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError
from trainer.tokenizer.bpe import END_OF_WORD, FIXED_IDS
from trainer.tokenizer.words import CHARACTER_OF_BYTE, END_TEXT, START_TEXT, clean, split_words

Merges = list[tuple[str, str]]

OPENAI_VOCAB_SIZE = 49_408
_OPENAI_FILE = "bpe_simple_vocab_16e6.txt.gz"
OPENAI_SOURCE = f"clip/{_OPENAI_FILE} of github.com/openai/CLIP"
_FORMAT = "byte-pair merges, version 1"
_FILE_LIMIT = 64 << 20
_LEAST_COUNT = 2


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
    Deterministic in the multiset of the texts. Memory grows with the distinct words; give a sample of a
    very large corpus. Raises InputError if size < 514.
    """
    if size < FIXED_IDS:
        raise InputError(f"tokenizer size: {size!r} is less than the {FIXED_IDS} ids that are always there; use more")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(clean(text)))
    for mark in (START_TEXT, END_TEXT):
        counts.pop(mark, None)
    merges = learn_merges(counts, size - FIXED_IDS)
    data = json.dumps({"format": _FORMAT, "merges": merges}, ensure_ascii=False, separators=(",", ":"))
    storage.write_atomic(path, data.encode())
    return FIXED_IDS + len(merges)


def learn_merges(word_counts: Counter[str], wanted: int) -> Merges:
    """The first `wanted` merges: the most frequent pair of neighbours, ties to the pair first in code-point order."""
    words: list[list[str]] = []
    weights: list[int] = []
    for word, count in sorted(word_counts.items()):
        pieces = [CHARACTER_OF_BYTE[byte] for byte in word.encode()]
        pieces[-1] += END_OF_WORD
        words.append(pieces)
        weights.append(count)
    pair_counts: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[int]] = {}
    for number, pieces in enumerate(words):
        for pair in itertools.pairwise(pieces):
            pair_counts[pair] += weights[number]
            places.setdefault(pair, set()).add(number)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    merges: Merges = []
    made = {*CHARACTER_OF_BYTE, *(character + END_OF_WORD for character in CHARACTER_OF_BYTE)}
    while heap and len(merges) < wanted:
        negative, pair = heapq.heappop(heap)
        if pair_counts[pair] != -negative:
            continue  # an entry from before the count changed; the current count has an entry of its own
        if -negative < _LEAST_COUNT:
            break
        if pair[0] + pair[1] in made:
            # Another pair has made this very piece already: a second id for it would be unreachable from
            # text.
            pair_counts[pair] = 0
            continue
        made.add(pair[0] + pair[1])
        merges.append(pair)
        changed: set[tuple[str, str]] = set()
        for number in places.pop(pair):
            changed |= _apply(words, weights[number], number, pair, pair_counts, places)
        for other in changed:
            if pair_counts[other] > 0:
                heapq.heappush(heap, (-pair_counts[other], other))
    return merges


def _apply(
    words: list[list[str]],
    weight: int,
    number: int,
    pair: tuple[str, str],
    pair_counts: Counter[tuple[str, str]],
    places: dict[tuple[str, str], set[int]],
) -> set[tuple[str, str]]:
    """Merge `pair` in one word and bring the counts up to date; gives the pairs whose count has changed."""
    old = words[number]
    new: list[str] = []
    place = 0
    while place < len(old):
        if place + 1 < len(old) and (old[place], old[place + 1]) == pair:
            new.append(old[place] + old[place + 1])
            place += 2
        else:
            new.append(old[place])
            place += 1
    if len(new) == len(old):
        return set()
    words[number] = new
    before = Counter(itertools.pairwise(old))
    after = Counter(itertools.pairwise(new))
    changed = set()
    for other in before.keys() | after.keys():
        difference = after[other] - before[other]
        if difference:
            pair_counts[other] += weight * difference
            changed.add(other)
        if after[other]:
            places.setdefault(other, set()).add(number)
    return changed
