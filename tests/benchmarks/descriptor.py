"""The learned descriptor, trained here and now, beside PDQ and pHash: how many copies of photographs each finds without a false pair.

    python -m tests.benchmarks.descriptor [--minutes 30] [--folder FOLDER] [--photographs FOLDER ...]

Trains with the shipped configuration on photographs that the test does not use (tests/benchmarks/data/copies.py says which), then makes
copies of photographs that it has not seen. A pair is a photograph and a query: a copy of another one, or a stranger (emoji, textures).
For the descriptor the threshold is the highest score of all unrelated pairs, N of them, so recall is at zero false pairs of N, and the
false-pair rate above it is below 3/N at 95 %. PDQ (31 of 256 bits) and pHash (8 of 64) have the thresholds that people use, and their own
false pairs are counted. Indexed is the whole photograph alone, or its parts and their mirror images too (32), with and without score
normalisation; "as shipped" is what the overlap job does when nothing is said: all of them, normalised, parts with their margin.

--folder: where the training corpus, the weights, the environment with scikit-image and Debian's photographs stay. A finished training is
not done again. Figures depend on the photographs that were there: the first lines count them.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from evaluation.config import DescriptorConfig
from evaluation.descriptor import embed, train, weights
from evaluation.descriptor.artefact import Descriptor
from evaluation.descriptor.config import TrainDescriptorConfig
from evaluation.descriptor.embed import Embedder
from evaluation.descriptor.search import cosines, normalisation
from evaluation.descriptor.views import VIEWS, WHOLE_PICTURE, ViewKind
from pipeline.content.hashes import HASH_SHORT_SIDE, PictureHashes, hamming, picture_hashes
from pipeline.content.image import decode
from pipeline.contracts import manifest
from pipeline.contracts.config import load_config
from tests.benchmarks.data import copies
from tests.benchmarks.data.peers import python_with
from tests.benchmarks.data.photographs import shard_rows

CONFIG = "evaluation/configs/descriptor.toml"
EMOJI, TEXTURES, STRANGE_TEXTURES = 500, 500, 1500  # few beside the photographs, which the test is about
SEED, MARGIN_SEED = 1, 7


def training_corpus(folder: Path, photographs: Sequence[Path]) -> str:
    """A corpus of everything that may be trained on; made once."""
    place = folder / "corpus"
    if not (place / manifest.FILE_NAME).exists():
        kinds = {
            "COCO's other half": copies.photographs_of_coco(1),
            "cuts of photographs": [cut for one in photographs for cut in copies.cuts(one)],
            "emoji": copies.emoji(1)[:EMOJI],
            "textures": [copies.texture(seed) for seed in range(TEXTURES)],
        }
        for name, found in kinds.items():
            print(f"trained on: {len(found):,} {name}", flush=True)
        pictures = [picture for found in kinds.values() for picture in found]
        manifest.write_corpus(str(place), [shard_rows([("", picture) for picture in pictures])])
    return str(place)


def scores(
    descriptor: Descriptor,
    references: Sequence[bytes],
    queries: NDArray[np.int8],
    kinds: Sequence[ViewKind],
    beta: float,
    part_margin: float,
) -> NDArray[np.float64]:
    """float64[references, queries]: the best score over the views of each reference."""
    embedder = Embedder.of(descriptor)
    table = []
    for data in references:
        looked_at = dict(embed.views(data, descriptor.card.architecture.size, kinds))
        seen = embedder.vectors(iter(looked_at.values()))
        lowered = normalisation(seen, descriptor.background, beta=beta)
        lowered += np.where(np.array(list(looked_at)) == WHOLE_PICTURE, 0.0, part_margin)
        table.append((cosines(seen, queries) - lowered[:, None]).max(axis=0))
    return np.stack(table)


def hashes(pictures: Sequence[bytes]) -> list[PictureHashes]:
    return [picture_hashes(decode(data, min_short_side=HASH_SHORT_SIDE)) for data in pictures]


def distances(
    left: Sequence[PictureHashes], right: Sequence[PictureHashes]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64[left, right] of PDQ and of pHash."""
    pdq = [np.array([list(one.pdq256) for one in side], np.uint8) for side in (left, right)]
    phash = [np.array([one.phash64 for one in side], np.uint64) for side in (left, right)]
    return hamming(pdq[0][:, None], pdq[1][None, :]), hamming(phash[0][:, None], phash[1][None, :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--folder", type=Path, help="where pictures and weights stay")
    parser.add_argument(
        "--photographs", type=Path, nargs="*", default=[], help="folders of further photographs to train on"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the shipped configuration")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        python_with(folder / "scikit-image", ["scikit-image==0.26.0"], ours=True)
        copies.debian(folder / "debian")
        photographs = [folder / "debian", *given.photographs]
        corpus = training_corpus(folder, photographs)
        settings = [f"data.manifest={corpus}", f"run.out={folder / 'weights'}", f"optimiser.minutes={given.minutes}"]
        print(f"{torch.get_num_threads()} threads, {given.minutes:g} minutes", flush=True)
        config = load_config(TrainDescriptorConfig, CONFIG, [*settings, *given.overrides])
        print(train.summary(train.train(config)), flush=True)
        descriptor = weights.read(config.run.out)
        show_margin(descriptor)
        compare(descriptor, folder)


def copies_of(references: Sequence[bytes], seed: int) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Each reference's copies, one of each kind, and whose they are: bool[references, copies]."""
    made: list[bytes] = []
    for number, data in enumerate(references):
        image, dice = Image.fromarray(decode(data).rgb), np.random.default_rng((seed, number))
        made += [make(image, dice) for make in copies.COPIES.values()]
    return made, np.repeat(np.eye(len(references), dtype=np.bool_), len(copies.COPIES), axis=1)


def embedded(descriptor: Descriptor, pictures: Sequence[bytes]) -> NDArray[np.int8]:
    """int8[n, d], zero for a picture without a vector."""
    nothing = np.zeros(descriptor.card.architecture.dimension, np.int8)
    return np.stack([nothing if one is None else one for one in Embedder.of(descriptor).first_views(pictures)])


def show_margin(descriptor: Descriptor) -> None:
    """What `part_margin` is chosen by: pairs of which none is in the test. The photographs are trained on, the strangers are not."""
    references = copies.photographs_of_coco(1)
    made, own = copies_of(references, MARGIN_SEED)
    strangers = [*copies.emoji(1)[EMOJI:], *(copies.texture(3_000_000 + seed) for seed in range(STRANGE_TEXTURES))]
    vectors = embedded(descriptor, [*made, *strangers])
    unrelated = ~np.hstack([own, np.zeros((len(references), len(strangers)), np.bool_)])
    whole, parts = (
        float(scores(descriptor, references, vectors, kinds, 1.0, 0.0)[unrelated].max())
        for kinds in (("whole",), VIEWS)
    )
    print(
        f"for the margin: {len(references)} photographs that were trained on, {len(made)} copies, {len(strangers):,} other strangers: "
        f"highest unrelated score {whole:.3f} whole, {parts:.3f} all, {parts - whole:.3f} apart"
    )


def compare(descriptor: Descriptor, folder: Path) -> None:
    references = [*copies.photographs_of_coco(0), *copies.photographs_of_scikit_image(folder / "scikit-image")]
    strangers = [*copies.emoji(0), *(copies.texture(1_000_000 + seed) for seed in range(STRANGE_TEXTURES))]
    made, own = copies_of(references, SEED)
    kinds = list(copies.COPIES)
    vectors = embedded(descriptor, [*made, *strangers])
    related = np.hstack([own, np.zeros((len(references), len(strangers)), np.bool_)])
    unrelated = int((~related).sum())
    print(
        f"tested on {len(references)} photographs, {len(made)} copies, {len(strangers):,} strangers: N = {unrelated:,} unrelated pairs, "
        f"false-pair rate below {3 / unrelated:.1e}"
    )
    columns: dict[str, NDArray[np.bool_]] = {}
    shipped = DescriptorConfig(weights="of this run")
    variants: tuple[tuple[str, Sequence[ViewKind], float, float], ...] = (
        ("whole", ("whole",), 0.0, 0.0),
        ("whole, norm.", ("whole",), 1.0, 0.0),
        ("all", VIEWS, 0.0, 0.0),
        ("all, norm.", VIEWS, 1.0, 0.0),
        ("as shipped", shipped.views, shipped.beta, shipped.part_margin),
    )
    for name, views, beta, margin in variants:
        table = scores(descriptor, references, vectors, views, beta, margin)
        highest = float(table[~related].max())
        columns[name] = table[:, : len(made)][own] > highest
        worst = np.argsort(-np.where(related, -9.0, table), axis=None)[:5]
        shown = ", ".join(
            f"{place // table.shape[1]} and {place % table.shape[1]} ({table.flat[place]:.3f})" for place in worst
        )
        print(f"{name}: threshold {highest:.4f}; nearest unrelated, photograph and query: {shown}")
    pdq, phash = distances(hashes(references), hashes([*made, *strangers]))
    for name, near in (("PDQ <= 31", pdq <= 31), ("pHash <= 8", phash <= 8)):
        columns[name] = near[:, : len(made)][own]
        print(f"{name}: {int((near & ~related).sum())} false pairs")
    print(f"{'recall':>20} " + " ".join(f"{name:>15}" for name in columns))
    for number, kind in enumerate(kinds):
        print(f"{kind:>20} " + " ".join(f"{found[number :: len(kinds)].mean():>15.3f}" for found in columns.values()))


if __name__ == "__main__":
    main()
