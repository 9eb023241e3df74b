"""Captions to token ids: `load("openai", vocab=path)(texts)`, or a vocabulary trained on one's own corpus."""

from pipeline.contracts.errors import InputError
from trainer.tokenizer.bpe import Tokenizer
from trainer.tokenizer.vocabulary import openai_merges, own_merges, train_vocabulary

__all__ = ["Tokenizer", "load", "train_vocabulary"]


def load(kind: str, vocab: str | None = None, context_length: int = 77) -> Tokenizer:
    """The tokenizer of a vocabulary file.

    kind "openai": OpenAI's merges file (plain or gzip, local or s3://); vocab None takes an installed
    open_clip's copy. kind "bpe": a file that `train_vocabulary` wrote. Raises InputError for another kind,
    a missing file, or a file that is not such a vocabulary.
    """
    if kind == "openai":
        merges, source = openai_merges(vocab)
    elif kind == "bpe":
        if vocab is None:
            raise InputError(
                "tokenizer vocab: None, but kind 'bpe' reads a file; give the path of a trained vocabulary"
            )
        merges, source = own_merges(vocab), vocab
    else:
        raise InputError(f"tokenizer kind: {kind!r} is unknown; use 'openai' or 'bpe'")
    return Tokenizer(merges, context_length=context_length, source=source)
