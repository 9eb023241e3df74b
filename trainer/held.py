"""Evaluation while training: retrieval on held-out pairs and zero-shot on a labelled set, by all processes together, without a trace.

`[held]` names a corpus of pairs in the shard format, a labelled set, or both. They are read once before the first step, each process
its share: what is missing or damaged ends the run then and not after a day, and pairs that cannot be used are counted and left out.
Pictures are told apart by the SHA-256 of their bytes and texts by their letters, so that several captions of one picture, and one caption
of several pictures, are what they are. Of all that, captions and digests are kept; pictures are read again each time.

An evaluation shares pictures and texts out in pieces of one fixed size, which go through the engine like a batch (in its precision; under
ZeRO stage 3 each process must make the same number of calls, and makes the last ones with nothing of its own). The features meet on every
process, which computes its share of the figures (`scores.py`). No number depends on who had which piece; the size of a piece, which follows
from the batch, may change the last digit of a feature.

The model is in eval mode meanwhile, and each module afterwards in the mode that it had. Batch norm normalises with the running
statistics of process 0, those that are exported. Where the run keeps an average of the weights, it is scored as well, in their place.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed
from torch import Tensor, nn

from pipeline.content import image as images
from pipeline.content import labelled
from pipeline.content.labelled import LabelledSet
from pipeline.contracts import manifest as manifests
from pipeline.contracts import parquet, storage
from pipeline.contracts.at_once import at_once
from pipeline.contracts.cli import Progress
from pipeline.contracts.errors import HouseError, InputError, StoreTrouble
from pipeline.contracts.manifest import Shard
from trainer import partitions, scores, tokenizer
from trainer.config import HeldConfig, TrainConfig, settled
from trainer.data.reader import Corpus, RowReader, patiently
from trainer.data.shards import ShardCorpus, open_columns
from trainer.data.transforms import evaluation_pixels, normalise
from trainer.optim import Ema
from trainer.zero import Engine, gather

log = logging.getLogger("trainer")

T = TypeVar("T")
UInt8s = npt.NDArray[np.uint8]
Figures = dict[str, float | None]
"""By name, such as `image_to_text_r1`; None where the model's features were not finite."""

_AT_ONCE = 128
"""Pictures, or texts, that go through the towers at a time, at most."""
_CACHE_BYTES = 64 << 20
_COMPARED_ROWS = 50_000_000
"""Of a training corpus, for each process: a minute or two of reading digests."""
_INDEXES = 64
"""Of a training corpus, that are read between two looks at the clock."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that is scored: pictures to be read, texts, and what their features give.

    read(places, rising) gives the encoded pictures at these places, of `pictures`. score(picture features [pictures, E], text features
    [texts, E], rank, number of processes) is collective. marks: by what a picture may be known in a corpus, and which picture it is:
    SHA-256 of its bytes, as stored or as fetched (32 bytes), and uids of its pairs (16 bytes).
    """

    name: str
    place: str
    pictures: int
    read: Callable[[Sequence[int]], Iterator[bytes]]
    texts: list[str]
    score: Callable[[Tensor, Tensor, int, int], dict[str, float]]
    chance: dict[str, float]
    marks: list[tuple[bytes, int]]


def find(config: HeldConfig | None) -> ShardCorpus | None:
    """The corpus of held pairs, if the configuration names one, by a look that takes no time.

    Raises InputError where it, or the labelled set, is not there, is not a corpus or has no rows.
    """
    if config is None:
        return None
    labelled_set = None if config.zeroshot is None else config.zeroshot.path
    if labelled_set is not None and not storage.exists(labelled_set) and not storage.is_folder(labelled_set):
        raise InputError(
            f"held.zeroshot.path: {labelled_set!r}: nothing there; name a Parquet file or a folder of class folders"
        )
    if config.manifest is None:
        return None
    corpus = ShardCorpus(config.manifest, manifests.load(config.manifest))
    if not corpus.rows:
        raise InputError(
            f"held.manifest: {config.manifest!r} has no rows; name a corpus that has some, or drop the key"
        )
    return corpus


# ---- opening


def open_held(
    config: TrainConfig, pairs: ShardCorpus | None, corpus: Corpus, vocabulary: str, rank: int, world: int
) -> "Held | None":
    """Read all of the held set once, and compare it with the corpus that is trained on; None where the run has no [held]. Collective.

    pairs: what `find` found. Raises InputError, on every process, where a file is damaged or nothing can be used.
    """
    if config.held is None:
        return None
    parts = []
    if pairs is not None:
        parts.append(_open_pairs(config, pairs, rank, world))
    if config.held.zeroshot is not None:
        parts.append(_open_zeroshot(config, rank))
    if rank == 0:
        for part in parts:
            amount = f"{part.pictures:,} pictures and {len(part.texts):,} texts"
            log.info("held: %s of %s; guessing reaches %s", amount, part.place, _words(part.chance))
    _compare(parts, corpus, rank, world)
    return Held(config, parts, vocabulary, rank, world)


def _open_pairs(config: TrainConfig, corpus: ShardCorpus, rank: int, world: int) -> Part:
    rows = min(corpus.rows, _given(config).limit or corpus.rows)
    mine = np.array_split(np.arange(rows), world)[rank]
    everyone = _all_or_none(lambda: _usable_rows(config, corpus, mine))
    usable = [row for part, _ in everyone for row in part]
    troubles = [trouble for _, part in everyone for trouble in part]
    if not usable:
        raise InputError(
            f"held.manifest: none of the {rows:,} rows of {corpus.place!r} can be used (row {troubles[0][0]}: {troubles[0][1]}); name a"
            " corpus of pictures with captions"
        )
    if troubles and rank == 0:
        log.warning(
            "held: %d of %d rows of %s cannot be used and are left out; the first is row %d: %s",
            len(troubles),
            rows,
            corpus.place,
            *troubles[0],
        )
    pictures: dict[bytes, int] = {}
    texts: dict[str, int] = {}
    first_rows: list[int] = []
    pairs = []
    marks = []
    for row, caption, sha256, others in usable:
        if sha256 not in pictures:
            first_rows.append(row)
        picture = pictures.setdefault(sha256, len(pictures))
        pairs.append((picture, texts.setdefault(caption, len(texts))))
        marks += [(mark, picture) for mark in (sha256, *others)]
    by_picture = scores.relation(torch.tensor(pairs))
    by_text = scores.relation(torch.tensor(pairs)[:, [1, 0]])

    def read(places: Sequence[int]) -> Iterator[bytes]:
        reader = RowReader(corpus, cache_bytes=_CACHE_BYTES, ahead=config.data.read_ahead)
        for found in reader.read(np.array([first_rows[place] for place in places], dtype=np.int64)):
            yield found.image or b""

    def score(of_pictures: Tensor, of_texts: Tensor, rank: int, world: int) -> dict[str, float]:
        there = _recall("image_to_text", of_pictures, of_texts, by_picture, rank, world)
        return there | _recall("text_to_image", of_texts, of_pictures, by_text, rank, world)

    chance = {f"image_to_text_r{cutoff}": scores.chance(len(texts), by_picture, cutoff) for cutoff in scores.CUTOFFS}
    chance |= {f"text_to_image_r{cutoff}": scores.chance(len(pictures), by_text, cutoff) for cutoff in scores.CUTOFFS}
    return Part("held.manifest", corpus.place, len(pictures), read, list(texts), score, chance, marks)


def _recall(
    name: str, queries: Tensor, candidates: Tensor, right: scores.Relation, rank: int, world: int
) -> dict[str, float]:
    """Recall one way; each process takes every so many-th block of queries. Collective."""
    right = scores.Relation(*(tensor.to(queries.device) for tensor in right))
    counts = torch.zeros(len(scores.CUTOFFS), dtype=torch.int64, device=queries.device)
    for block in scores.blocks(len(queries), len(candidates))[rank::world]:
        ranks = scores.ranks(queries, candidates, right, block)
        counts += torch.stack([(ranks < cutoff).sum() for cutoff in scores.CUTOFFS])
    torch.distributed.all_reduce(counts)
    shares = (count / len(queries) for count in counts.tolist())
    return {f"{name}_r{cutoff}": share for cutoff, share in zip(scores.CUTOFFS, shares, strict=True)}


Usable = tuple[int, str, bytes, list[bytes]]
"""Row, caption, SHA-256 of the picture as it is stored; uid, and SHA-256 of the picture as it was fetched where that is known."""
Trouble = tuple[int, str]


def _usable_rows(
    config: TrainConfig, corpus: ShardCorpus, rows: npt.NDArray[np.int64]
) -> tuple[list[Usable], list[Trouble]]:
    """What is in these rows (rising, without a gap), and which of them cannot be used. Every picture is decoded once."""
    usable: list[Usable] = []
    troubles: list[Trouble] = []
    known: dict[bytes, str | None] = {}

    def look_at(image: bytes | None) -> tuple[bytes, str | None]:
        digest = hashlib.sha256(image or b"").digest()
        if digest not in known:
            known[digest] = "no picture" if image is None else _trouble_with(image, config)
        return digest, known[digest]

    if not len(rows):
        return usable, troubles
    marks = _marks(corpus, int(rows[0]), int(rows[-1]) + 1)
    reader = RowReader(corpus, cache_bytes=_CACHE_BYTES, ahead=config.data.read_ahead)
    with ThreadPoolExecutor(_threads(config)) as pool, _progress(len(rows), "pairs", "opening held pairs") as done:
        found = zip(rows.tolist(), marks, reader.read(rows), strict=True)
        while batch := list(itertools.islice(found, _AT_ONCE)):
            said = pool.map(look_at, [row.image for _, _, row in batch])
            for (number, others, row), (digest, trouble) in zip(batch, said, strict=True):
                if row.caption is None or not row.caption.strip():
                    troubles.append((number, "no caption"))
                elif trouble is not None:
                    troubles.append((number, trouble))
                else:
                    usable.append((number, row.caption, digest, others))
            done(len(batch))
    return usable, troubles


def _marks(corpus: ShardCorpus, start: int, stop: int) -> list[list[bytes]]:
    """uid and, where there is one, source_sha256 of rows start to stop - 1, from the indexes."""
    found: list[list[bytes]] = []
    first = 0
    for shard in corpus.manifest.shards:
        if first < stop and first + shard.rows > start:
            index = _index(corpus.place, shard, ["uid", "source_sha256"])
            part = index.slice(max(0, start - first), stop - max(start, first))
            rows = zip(*(column.to_pylist() for column in part.columns), strict=True)
            found += [[mark for mark in row if mark is not None] for row in rows]
        first += shard.rows
    return found


def _index(place: str, shard: Shard, columns: list[str]) -> pa.Table:
    """These columns of a shard's index. Raises InputError where it is not that of a corpus, or not this shard's."""
    uri = manifests.index_uri(place, shard)

    def read() -> pa.Table:
        with open_columns(uri, columns) as source, parquet.plain_errors(uri):
            return source.read(columns=columns)

    index = patiently(read)
    if index.num_rows != shard.rows:
        raise InputError(
            f"{uri}: has {index.num_rows} rows, the manifest says {shard.rows}; run `python -m pipeline verify {place}`"
        )
    return index


def _trouble_with(image: bytes, config: TrainConfig) -> str | None:
    try:
        images.decode(image, min_short_side=settled(config).image_size)
    except images.ImageRejected as rejected:
        return str(rejected)
    return None


def _open_zeroshot(config: TrainConfig, rank: int) -> Part:
    """Process 0 reads the set, which takes reading every picture, and the others are told."""
    wanted, limit = _given(config).zeroshot, _given(config).limit
    if wanted is None:
        raise ValueError("the configuration has no held.zeroshot")
    opened = _all_or_none(lambda: patiently(lambda: labelled.open_set(wanted)) if rank == 0 else None)[0]
    if opened is None:
        raise ValueError("process 0 has opened no set")
    rows = np.flatnonzero(opened.labels != labelled.UNLABELLED)
    if not len(rows) or len(opened.classes) < 2:
        raise InputError(
            f"held.zeroshot: {wanted.path!r} has {len(rows)} labelled pictures of {len(opened.classes)} classes; zero-shot needs at least"
            " two classes: name the column with held.zeroshot.label"
        )
    if limit is not None and len(rows) > limit:  # by digest, because sets are often ordered by class
        rows = np.sort(np.array(sorted(rows.tolist(), key=lambda row: (opened.sha256[row], row))[:limit]))
    everyone = _all_or_none(lambda: _check_pictures(config, opened, rows.tolist(), rank))
    if troubles := [trouble for part in everyone for trouble in part]:
        raise InputError(
            f"held.zeroshot: {wanted.path!r}: picture {opened.ids[troubles[0][0]]!r} cannot be opened ({troubles[0][1]}); mend the file or"
            " leave the row out with held.zeroshot.where"
        )
    labels = torch.from_numpy(opened.labels[rows].astype(np.int64))

    def read(places: Sequence[int]) -> Iterator[bytes]:
        return (picture.data for picture in _pictures(opened, rows[list(places)].tolist()))

    def score(picture_features: Tensor, text_features: Tensor, rank: int, world: int) -> dict[str, float]:
        weights = scores.class_weights(text_features, len(opened.classes))
        return scores.zeroshot(picture_features, weights, labels.to(picture_features.device))

    texts = [template.replace("{}", name) for name in opened.class_texts for template in wanted.templates]
    classes = len(opened.classes)
    chance = {"zeroshot_top1": 1 / classes, "zeroshot_top5": min(1.0, 5 / classes)}
    chance["zeroshot_mean_per_class"] = chance["zeroshot_top1"]
    marks = [(opened.sha256[row], place) for place, row in enumerate(rows.tolist())]
    return Part("held.zeroshot", wanted.path, len(rows), read, texts, score, chance, marks)


def _check_pictures(config: TrainConfig, opened: LabelledSet, rows: list[int], rank: int) -> list[Trouble]:
    """Decode each process's share once; the first picture that cannot be."""
    mine = np.array_split(np.array(rows), torch.distributed.get_world_size())[rank].tolist()
    pictures = _pictures(opened, mine)
    with (
        ThreadPoolExecutor(_threads(config)) as pool,
        _progress(len(mine), "pictures", "checking held.zeroshot") as done,
    ):
        while batch := list(itertools.islice(pictures, _AT_ONCE)):
            said = pool.map(lambda picture: _trouble_with(picture.data, config), batch)
            for picture, trouble in zip(batch, said, strict=True):
                if trouble is not None:
                    return [(picture.row, trouble)]
            done(len(batch))
    return []


def _pictures(opened: LabelledSet, rows: list[int]) -> Iterator[labelled.Picture]:
    """The pictures of these rows; where the store does not answer for a while, from there on again."""
    coming = opened.pictures(rows)

    def following() -> labelled.Picture:
        nonlocal coming
        try:
            return next(coming)
        except StoreTrouble:
            coming = opened.pictures(rows[done:])
            raise

    done = 0
    while done < len(rows):
        yield patiently(following)
        done += 1


@contextlib.contextmanager
def _progress(total: int, unit: str, label: str) -> Iterator[Callable[[int], object]]:
    """Long work, told of by process 0, whose share stands for all; gives what to call with a number of things that are done."""
    if torch.distributed.get_rank():
        yield lambda _: None
        return
    with Progress(total, unit, label, summary=False) as progress:
        yield progress.update


def _given(config: TrainConfig) -> HeldConfig:
    if config.held is None:
        raise ValueError("the configuration has no [held]")
    return config.held


def _threads(config: TrainConfig) -> int:
    return max(1, config.data.workers)


def _all_or_none(work: Callable[[], T]) -> list[T]:
    """What `work` gave on every process, by rank; where it raised what the user must see, all raise it. Collective."""
    mine: T | HouseError
    try:
        mine = work()
    except HouseError as error:
        mine = error
    everyone = gather(mine)
    found: list[T] = []
    for answer in everyone:
        if isinstance(answer, HouseError):
            raise answer
        found.append(answer)
    return found


# ---- what of it is trained on


def _compare(parts: list[Part], corpus: Corpus, rank: int, world: int) -> None:
    """Warn of held pictures that are in the training corpus too, the same bytes or the same pair, by what its indexes say. Collective."""
    if not isinstance(corpus, ShardCorpus) or corpus.rows > _COMPARED_ROWS * world:
        why = "tars have no index" if not isinstance(corpus, ShardCorpus) else f"it has {corpus.rows:,} rows"
        if rank == 0:
            log.info(
                "held: not compared with the training corpus (%s); `python -m evaluation overlap` finds what is in both",
                why,
            )
        return
    known: dict[bytes, set[tuple[int, int]]] = {}
    for number, part in enumerate(parts):
        for mark, picture in part.marks:
            known.setdefault(mark, set()).add((number, picture))
    everyone = _all_or_none(lambda: _known_in_shards(corpus, corpus.manifest.shards[rank::world], known))
    both = {picture for found in everyone for marks in found for mark in marks for picture in known[mark]}
    for number, part in enumerate(parts):
        count = sum(one == number for one, _ in both)
        if count and rank == 0:
            log.warning(
                "%s: %s of its %s pictures are in the training corpus too, so that its scores flatter; take them out of the corpus with"
                " `python -m pipeline exclude`",
                part.name,
                f"{count:,}",
                f"{part.pictures:,}",
            )


def _known_in_shards(corpus: ShardCorpus, shards: Sequence[Shard], known: Collection[bytes]) -> list[set[bytes]]:
    """Those of the marks that each of these shards' indexes has."""
    found: list[set[bytes]] = []
    with _progress(len(shards), "indexes", "comparing with the training corpus") as done:
        for start in range(0, len(shards), _INDEXES):
            some = shards[start : start + _INDEXES]
            found += at_once(lambda shard: _known_in(corpus.place, shard, known), some)
            done(len(some))
    return found


def _known_in(place: str, shard: Shard, known: Collection[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for column in _index(place, shard, ["uid", "image_sha256", "source_sha256"]).columns:
        wanted = pa.array([mark for mark in known if len(mark) == column.type.byte_width], column.type)
        found |= set(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
    return found


# ---- evaluating


_SHOWN = ("image_to_text_r1", "text_to_image_r1", "zeroshot_top1")
"""The figures that a log line has."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """What an evaluation gave: figures of the weights, of their average where there is one, and what guessing reaches."""

    weights: Figures
    average: Figures | None
    chance: dict[str, float]
    seconds: float

    def line(self) -> dict[str, object]:
        """As a line of metrics.jsonl has it."""
        average = {} if self.average is None else {"held_ema": self.average}
        return {"held": self.weights, **average, "held_chance": self.chance, "held_seconds": self.seconds}

    def __str__(self) -> str:
        said = f"held {_words(self.weights)}"
        if self.average is not None:
            said += f"; of the average {_words(self.average)}"
        return f"{said} ({self.seconds:.1f} s)"


def _words(figures: Mapping[str, float | None]) -> str:
    shown = ((name, figures[name]) for name in _SHOWN if name in figures)
    return ", ".join(f"{name} {'is not finite' if value is None else f'{100 * value:.1f} %'}" for name, value in shown)


class Held:
    """An opened held set, on one of the processes that share it."""

    def __init__(self, config: TrainConfig, parts: list[Part], vocabulary: str, rank: int, world: int) -> None:
        use = settled(config)
        self._config, self._parts, self._rank, self._world = config, parts, rank, world
        self._size, self._threads = use.image_size, _threads(config)
        self._tokenizer = tokenizer.load(config.tokenizer.kind, vocab=vocabulary, context_length=use.context_length)
        per_device = config.batch.global_size // world
        self._at_once = min(_AT_ONCE, config.batch.micro_size or per_device, per_device)

    def due(self, step: int, last_step: int) -> bool:
        """Whether there is an evaluation after this step; 0 is before the first one."""
        return step > 0 and (step % _given(self._config).every == 0 or step == last_step)

    def evaluate(
        self, engine: Engine, dtype: torch.dtype, average: Ema | None, stop: Callable[[], bool]
    ) -> Scored | None:
        """The figures of the weights, and of their average if there is one; None where it was to stop. Collective.

        dtype: of the pixels, as the engine wants them. stop is asked before each piece of the work, and must say the same on all processes.
        """
        started = time.perf_counter()
        weights = self._figures(engine, dtype, stop)
        averaged = None
        if weights is not None and average is not None:
            with _in_place_of_weights(engine, average):
                averaged = self._figures(engine, dtype, stop)
        if weights is None or (average is not None and averaged is None):
            return None
        chance = {name: value for part in self._parts for name, value in part.chance.items()}
        return Scored(weights, averaged, chance, time.perf_counter() - started)

    @torch.no_grad()
    def _figures(self, engine: Engine, dtype: torch.dtype, stop: Callable[[], bool]) -> Figures | None:
        found: Figures = {}
        with _looking(engine.module), _first_statistics(engine.module):
            for part in self._parts:
                features = self._features(engine, part, dtype, stop)
                if features is None:
                    return None
                pictures, texts = features
                if bool(pictures.isfinite().all()) and bool(texts.isfinite().all()):
                    found |= part.score(pictures, texts, self._rank, self._world)
                else:
                    found |= dict.fromkeys(part.chance)
        return found

    def _features(
        self, engine: Engine, part: Part, dtype: torch.dtype, stop: Callable[[], bool]
    ) -> tuple[Tensor, Tensor] | None:
        """L2-normalised features [pictures, E] and [texts, E] in at least fp32, the same on every process; None where it was to stop."""
        my_pictures, picture_calls = self._share(part.pictures)
        my_texts, text_calls = self._share(len(part.texts))
        pixels_of = self._pixels(part, my_pictures)
        nothing = np.zeros((1, 3, self._size, self._size), np.uint8), self._tokenizer([""])
        features: tuple[Tensor, Tensor] | None = None
        for call in range(max(picture_calls, text_calls)):
            if stop():
                return None
            # A process that has nothing left of its own calls all the same: under stage 3 all must.
            pixels = next(pixels_of, nothing[0])
            ids = self._ids(part, my_texts[call]) if call < len(my_texts) else nothing[1]
            mean, std = self._config.model.pixel_mean, self._config.model.pixel_std
            inputs = normalise(torch.from_numpy(pixels).to(engine.device), mean, std).to(dtype)
            of_pictures, of_texts, *_ = engine(inputs, ids.to(engine.device))
            if features is None:
                width = of_pictures.shape[1]
                features = of_pictures.new_zeros(part.pictures, width), of_texts.new_zeros(len(part.texts), width)
            for whole, found, mine in zip(features, (of_pictures, of_texts), (my_pictures, my_texts), strict=True):
                for piece in mine[call : call + 1]:
                    whole[piece] = found[: piece.stop - piece.start]
        if features is None:
            raise ValueError(f"{part.name} has nothing to encode")
        for whole in features:
            torch.distributed.all_reduce(whole)  # each row is zero on all processes but one
        return features

    def _ids(self, part: Part, piece: slice) -> Tensor:
        """Ids of a piece of the texts, int64 [n, L]. All pieces have one n, as with pixels."""
        texts = part.texts[piece]
        return self._tokenizer([*texts, *[""] * (min(self._at_once, len(part.texts)) - len(texts))])

    def _share(self, total: int) -> tuple[list[slice], int]:
        """This process's pieces of `total` things, and the largest number of pieces that a process has."""
        starts = range(0, total, self._at_once)
        mine = np.array_split(np.array(starts), self._world)[self._rank].tolist()
        return [slice(start, min(start + self._at_once, total)) for start in mine], -(-len(starts) // self._world)

    def _pixels(self, part: Part, mine: list[slice]) -> Iterator[UInt8s]:
        """Pixels of these pieces, uint8 [n, 3, r, r]; the next piece is decoded by threads while this one is looked at.

        All have one n, so that a feature does not depend on which piece it was in: the last one is filled up with black.
        """
        encoded = part.read([place for piece in mine for place in range(piece.start, piece.stop)])
        full = min(self._at_once, part.pictures)
        with ThreadPoolExecutor(self._threads) as pool:

            def send(piece: slice) -> list[Future[UInt8s]]:
                return [pool.submit(self._decode, data) for data in itertools.islice(encoded, piece.stop - piece.start)]

            coming = send(mine[0]) if mine else []
            for following in (*mine[1:], None)[: len(mine)]:
                now, coming = coming, [] if following is None else send(following)
                pixels = np.zeros((full, 3, self._size, self._size), np.uint8)
                for place, one in enumerate(now):
                    pixels[place] = one.result()
                yield pixels

    def _decode(self, data: bytes) -> UInt8s:
        try:
            rgb = images.decode(data, min_short_side=self._size).rgb
        except images.ImageRejected as rejected:
            raise InputError(
                f"held: a picture that could be opened when the run began cannot be opened now ({rejected}); bring back the files that the"
                " run began with"
            ) from None
        return evaluation_pixels(rgb, self._size)


@contextlib.contextmanager
def _looking(module: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards for each module the mode that it had: parts of a model may be frozen and in eval mode for good."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def _first_statistics(module: nn.Module) -> Iterator[None]:
    """Running statistics of batch norm as process 0 has them, on all; each has its own again afterwards. Collective."""
    own = [
        statistics
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        for statistics in (part.running_mean, part.running_var)
        if statistics is not None
    ]
    kept = [statistics.clone() for statistics in own]
    for statistics in own:
        torch.distributed.broadcast(statistics, 0)
    yield
    for statistics, value in zip(own, kept, strict=True):
        statistics.copy_(value)


@contextlib.contextmanager
def _in_place_of_weights(engine: Engine, average: Ema) -> Iterator[None]:
    """The module has the average of the weights, and then the weights again, to the bit. Collective.

    The masters lie on the CPU meanwhile: a device that is full while training has no room for both.
    """
    masters = partitions.masters(engine)
    kept = [master.detach().to("cpu", copy=True) for master in masters]
    _set_masters(engine, masters, average.tensors)
    yield
    _set_masters(engine, masters, kept)


@torch.no_grad()
def _set_masters(engine: Engine, masters: list[Tensor], values: Iterable[Tensor]) -> None:
    for master, value in zip(masters, values, strict=True):
        master.copy_(value.view(master.shape))
    partitions.publish(engine)
