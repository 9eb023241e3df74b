"""The figures of a model while it trains: features by all processes together, and what their share of the arithmetic gives."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import Tensor, nn

from pipeline.content import image as images
from pipeline.contracts.errors import InputError
from trainer import partitions, tokenizer
from trainer.config import TrainConfig, settled
from trainer.data.transforms import evaluation_pixels, normalise
from trainer.held.part import AT_ONCE, Part, given, threads
from trainer.models import text_lengths
from trainer.optim import Ema
from trainer.zero import Engine

UInt8s = npt.NDArray[np.uint8]
Figures = dict[str, float | None]
"""By name, such as `image_to_text_r1`; None where the model's features were not finite."""

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
        said = f"held {words(self.weights)}"
        if self.average is not None:
            said += f"; of the average {words(self.average)}"
        return f"{said} ({self.seconds:.1f} s)"


def words(figures: Mapping[str, float | None]) -> str:
    shown = ((name, figures[name]) for name in _SHOWN if name in figures)
    return ", ".join(f"{name} {'is not finite' if value is None else f'{100 * value:.1f} %'}" for name, value in shown)


class Held:
    """An opened held set, on one of the processes that share it."""

    def __init__(self, config: TrainConfig, parts: list[Part], vocabulary: str, rank: int, world: int) -> None:
        use = settled(config)
        self._config, self._parts, self._rank, self._world = config, parts, rank, world
        self._size, self._threads = use.image_size, threads(config)
        self._tokenizer = tokenizer.load(config.tokenizer.kind, vocab=vocabulary, context_length=use.context_length)
        per_device = config.batch.global_size // world
        self._at_once = min(AT_ONCE, config.batch.micro_size or per_device, per_device)
        # Texts are encoded by rising length, each piece as long as its longest.
        self._by_length = {part.name: text_lengths(self._tokenizer(part.texts)).argsort(stable=True) for part in parts}

    def due(self, step: int, last_step: int) -> bool:
        """Whether there is an evaluation after this step; 0 is before the first one."""
        return step > 0 and (step % given(self._config).every == 0 or step == last_step)

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
            with in_place_of_weights(engine, average):
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
        my_texts, text_calls = self._share(len(part.texts), in_turn=True)
        by_length = self._by_length[part.name]
        pixels_of = self._pixels(part, my_pictures)
        nothing = np.zeros((1, 3, self._size, self._size), np.uint8), self._tokenizer([""])
        features: tuple[Tensor, Tensor] | None = None
        for call in range(max(picture_calls, text_calls)):
            if stop():
                return None
            # A process that has nothing left of its own calls all the same: under stage 3 all must.
            pixels = next(pixels_of, nothing[0])
            ids = self._ids(part, by_length[my_texts[call]]) if call < len(my_texts) else nothing[1]
            mean, std = self._config.model.pixel_mean, self._config.model.pixel_std
            inputs = normalise(torch.from_numpy(pixels).to(engine.device), mean, std).to(dtype)
            cut = ids[:, : text_lengths(ids).max()]
            of_pictures, of_texts, *_ = engine(inputs, cut.to(engine.device))
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
        pictures, texts = features
        return pictures, texts[by_length.argsort()]

    def _ids(self, part: Part, places: Tensor) -> Tensor:
        """Ids of the texts at these places, int64 [n, L]. All pieces have one n, as with pixels."""
        nothing = [""] * (min(self._at_once, len(part.texts)) - len(places))
        return self._tokenizer([*(part.texts[place] for place in places.tolist()), *nothing])

    def _share(self, total: int, *, in_turn: bool = False) -> tuple[list[slice], int]:
        """This process's pieces of `total` things, neighbours or dealt in turn, and the largest number of pieces that a process has."""
        starts = np.arange(0, total, self._at_once)
        mine = starts[self._rank :: self._world] if in_turn else np.array_split(starts, self._world)[self._rank]
        pieces = [slice(start, min(start + self._at_once, total)) for start in mine.tolist()]
        return pieces, -(-len(starts) // self._world)

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
def in_place_of_weights(engine: Engine, average: Ema) -> Iterator[None]:
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
