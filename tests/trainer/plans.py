"""The loader's plan that its tests begin with."""

from trainer.config import AugmentationConfig
from trainer.data.loader import LoaderPlan
from trainer.data.reader import Corpus


def small_plan(corpus: Corpus, vocabulary: str, *, window_row_groups: int) -> LoaderPlan:
    """Batches of 24 pairs at 32 pixels, made in the process that asks for them."""
    return LoaderPlan(
        corpus=corpus,
        tokenizer_kind="bpe",
        vocabulary=vocabulary,
        context_length=16,
        image_size=32,
        augmentation=AugmentationConfig(),
        seed=11,
        window_row_groups=window_row_groups,
        global_size=24,
        rank=0,
        world_size=1,
        workers=0,
        prefetch=2,
        cache_bytes=1 << 24,
        read_ahead=2,
    )
