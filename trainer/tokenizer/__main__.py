"""`python -m trainer.tokenizer train --manifest CORPUS --size 49152 --out vocabulary.json`: a vocabulary of one's own.

A run trains its vocabulary itself where its configuration says `tokenizer.train_size`; this command is for one that several runs share.
"""

import argparse

from pipeline.contracts import manifest as manifests
from pipeline.contracts import storage
from pipeline.contracts.cli import run_cli
from pipeline.contracts.errors import InputError
from trainer.data.shards import ShardCorpus
from trainer.tokenizer.vocabulary import DEFAULT_SIZE, train_vocabulary


def main(argv: list[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m trainer.tokenizer", description="Vocabularies of byte pairs.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a vocabulary on the captions of a corpus", allow_abbrev=False)
    train.add_argument("--manifest", required=True, help="manifest.json of a corpus, or its folder; a path or s3://…")
    train.add_argument(
        "--size", type=int, default=DEFAULT_SIZE, help=f"how many ids to make at most; {DEFAULT_SIZE:,} when left out"
    )
    train.add_argument("--out", required=True, metavar="FILE", help="where the vocabulary goes; a path or s3://…")
    arguments = parser.parse_args(argv)
    try:  # now, and not when the captions of the corpus are counted, which may take hours
        is_folder = storage.is_folder(arguments.out)
        storage.require_folder(storage.parent(arguments.out))
    except InputError as error:
        raise InputError(f"--out: {error}") from None
    if is_folder:
        raise InputError(f"--out: {arguments.out!r} is a folder; name the file that the vocabulary goes to")
    texts = ShardCorpus(arguments.manifest, manifests.load(arguments.manifest)).captions()
    size = train_vocabulary(texts, arguments.size, arguments.out)
    less = (
        ""
        if size == arguments.size
        else f" (no pair of pieces is left that the corpus has twice: {arguments.size:,} asked for)"
    )
    print(f"{arguments.out}: {size:,} ids{less}")
    print(
        f"next: python -m trainer --config FILE tokenizer.kind=bpe tokenizer.vocab={arguments.out} model.vocab_size={size}"
    )
    return 0


if __name__ == "__main__":
    run_cli(main)
