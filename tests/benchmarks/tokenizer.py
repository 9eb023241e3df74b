"""Captions to ids, and training a vocabulary, one core, beside open_clip and Hugging Face's `tokenizers`.

    python -m tests.benchmarks.tokenizer [--peers FOLDER]

Encoding: distinct captions in batches of 1,024, each pass by a new tokenizer that has met no word (a loader's first epoch), three passes in
turn, medians. open_clip's users call its tokenizer with one caption (its own data loaders do) or with a list; both are measured, and the
bar, five times, is against the faster. Its `SimpleTokenizer` is the published wheel's file, loaded by itself (its package needs
torchvision); it uses our torch, ftfy and regex. `tokenizers` has no ftfy, so its byte-pair model gets captions that our `clean` has
cleaned, and that is on its clock. All ids are compared, caption by caption. The figure decides whether ids are made by the loader's workers
at every epoch or stored in the shards: beside the milliseconds that a picture takes to decode they cost nothing, so they are not stored.

Training: 49,152 ids on the captions, and on a million generated ones (halves of two captions, a third of them with an invented name), each
in a process of its own. Both get our `clean`. What the vocabularies are worth is told by ids a caption. The figure decides that a run may
train its vocabulary before its first step (`tokenizer.train_size`).
"""

import argparse
import importlib.util
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch

from tests.benchmarks.data.captions import captions
from trainer.tokenizer import load
from trainer.tokenizer.bpe import first_pieces
from trainer.tokenizer.vocabulary import DEFAULT_SIZE, openai_merges, train_vocabulary
from trainer.tokenizer.words import END_TEXT, START_TEXT, clean

OPEN_CLIP = "open_clip_torch==3.3.0"
BATCH = 1024
BAR = 5
GENERATED = 1_000_000
# The expression of transformers' converter for CLIP; the marks are special tokens there.
_SPLIT = tokenizers.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")

Encode = Callable[[list[str]], torch.Tensor]


# ---- encoding


def open_clip(folder: Path) -> Path:
    """The package open_clip as published, in `folder`; it is fetched where it is missing."""
    place = folder / OPEN_CLIP
    if not place.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), OPEN_CLIP]
        subprocess.run(command, check=True)
    return place / "open_clip"


def loaded(path: Path) -> Any:
    """The module of one file."""
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hugging_face(merges: list[tuple[str, str]]) -> Encode:
    """The same vocabulary in `tokenizers`, with end marks, cut and padded to 77."""
    pieces = {piece: place for place, piece in enumerate([*first_pieces(), *map("".join, merges)])}
    fast = split_by_words(tokenizers.models.BPE(vocab=pieces, merges=merges, end_of_word_suffix="</w>"))
    fast.add_special_tokens([START_TEXT, END_TEXT])
    marks = [(mark, fast.token_to_id(mark)) for mark in (START_TEXT, END_TEXT)]
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{START_TEXT} $A {END_TEXT}", special_tokens=marks
    )
    fast.enable_truncation(77)
    fast.enable_padding(length=77, pad_id=0)

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([found.ids for found in fast.encode_batch([clean(text) for text in texts])])

    return encode


def one_by_one(encode: Encode) -> Encode:
    """The same, called with one caption at a time."""
    return lambda texts: torch.cat([encode([text]) for text in texts])


def split_by_words(model: Any) -> Any:
    """A tokenizer of `tokenizers` that splits as CLIP's does."""
    fast = tokenizers.Tokenizer(model)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(_SPLIT, behavior="removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return fast


def encoding(peers: Path) -> None:
    texts = captions()
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    package = open_clip(peers)
    module, source = loaded(package / "tokenizer.py"), str(package / "bpe_simple_vocab_16e6.txt.gz")
    load("openai", source)(["compiled, or read from the cache"])
    merges = openai_merges(source)[0]
    makers: dict[str, Callable[[], Encode]] = {
        "open_clip 3.3.0": lambda: module.SimpleTokenizer(source),
        "  one at a time": lambda: one_by_one(module.SimpleTokenizer(source)),
        f"tokenizers {tokenizers.__version__}": lambda: hugging_face(merges),
        "ours": lambda: load("openai", source),
    }
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    built: dict[str, list[float]] = {name: [] for name in makers}
    found: dict[str, torch.Tensor] = {}
    for _ in range(3):
        for name, make in makers.items():
            started = time.perf_counter()
            encode = make()
            built[name].append(time.perf_counter() - started)
            started = time.perf_counter()
            rows = [encode(batch) for batch in batches]
            seconds[name].append(time.perf_counter() - started)
            found[name] = torch.cat(rows)
    print(
        f"{len(texts):,} distinct captions of {sum(map(len, texts)) / len(texts):.0f} characters, one cold pass, one core"
    )
    print(f"{'':<20}{'build, s':>10}{'captions/s':>12}{'us each':>9}{'ratio':>8}{'equal to ours':>16}")
    for name in makers:
        middle = statistics.median(seconds[name])
        equal = int((found[name] == found["ours"]).all(1).sum())
        print(
            f"{name:<20}{statistics.median(built[name]):>10.2f}{len(texts) / middle:>12,.0f}{middle / len(texts) * 1e6:>9.2f}"
            f"{middle / statistics.median(seconds['ours']):>8.1f}{equal:>16,}"
        )
    if not all(torch.equal(rows, found["ours"]) for rows in found.values()):
        raise SystemExit("the ids differ")
    faster = min(statistics.median(seconds[name]) for name in ("open_clip 3.3.0", "  one at a time"))
    print(f"{faster / statistics.median(seconds['ours']):.1f} times open_clip's faster way (at least {BAR} wanted)")


# ---- training


def generated(texts: list[str], count: int) -> Iterator[str]:
    """Captions made of the first half of one caption and the second half of another; every third has a name that nobody bears."""
    draws = random.Random(3)
    halves = [text.split() for text in texts]
    syllables = [
        first + second for first in "bcdfghklmnprstvz" for second in ("a", "e", "i", "o", "u", "an", "er", "is")
    ]
    for number in range(count):
        one, other = draws.choice(halves), draws.choice(halves)
        words = one[: (len(one) + 1) // 2] + other[len(other) // 2 :]
        if number % 3 == 0:
            words.append("".join(draws.choices(syllables, k=draws.choice((2, 3, 4)))).capitalize())
        yield " ".join(words)


class Trained(NamedTuple):
    seconds: float
    peak: float
    """MB of the process above what it had before."""
    ids: int
    ids_per_caption: float
    """Over every fiftieth caption."""


def ours(texts: Iterable[str]) -> tuple[int, Callable[[str], int]]:
    """(ids of the vocabulary, from a caption to the number of its ids)."""
    with tempfile.TemporaryDirectory() as folder:
        size = train_vocabulary(texts, DEFAULT_SIZE, f"{folder}/vocabulary")
        made = load("bpe", f"{folder}/vocabulary")
    return size, lambda text: len(made.encode(text))


def hugging_faces(texts: Iterable[str]) -> tuple[int, Callable[[str], int]]:
    fast = split_by_words(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=DEFAULT_SIZE,
        min_frequency=2,
        special_tokens=[START_TEXT, END_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    fast.train_from_iterator((clean(text) for text in texts), trainer)
    return fast.get_vocab_size(), lambda text: len(fast.encode(clean(text)).ids)


def train(maker: Callable[[Iterable[str]], tuple[int, Callable[[str], int]]], count: int) -> Trained:
    """Train on the captions (count 0) or on `count` generated ones; for a process that does nothing else."""
    texts = captions()
    corpus = list(generated(texts, count)) if count else texts
    maker(["compiled, or read from the cache", "compiled"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    size, ids_of = maker(corpus)
    seconds = time.perf_counter() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    held = texts[::50]
    return Trained(seconds, peak, size, sum(map(ids_of, held)) / len(held))


def training() -> None:
    print(f"{'':<22}{'captions':>10}{'seconds':>9}{'captions/s':>12}{'peak, MB':>10}{'ids':>8}{'ids a caption':>15}")
    for count in (0, GENERATED):
        for name, maker in ((f"tokenizers {tokenizers.__version__}", hugging_faces), ("ours", ours)):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                made = process.apply(train, (maker, count))
            number = count or len(captions())
            print(
                f"{name:<22}{number:>10,}{made.seconds:>9.1f}{number / made.seconds:>12,.0f}{made.peak:>10,.0f}{made.ids:>8,}"
                f"{made.ids_per_caption:>15.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.tokenizer", allow_abbrev=False)
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "tokenizer-peers")
    peers = parser.parse_args().peers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    encoding(peers)
    training()


if __name__ == "__main__":
    main()
