"""The query list from a Wikipedia dump: what each step costs a core, and what a whole dump would.

    python -m tests.benchmarks.queries        # REAL_DATA says where the genuine dump is

The steps are those of `queries-count` and `queries-words`, over the genuine dump, one after the other in one process. The floor is what
bzip2 itself takes to decompress the same file, in the same run. Page views are lines of the hourly format, made here. Five passes; figures
are medians of processor time.

The whole dump is reckoned by its bytes of XML. That errs on the safe side: here nearly all of them are articles, of a whole dump a quarter
is pages whose markup nobody parses; and these two megabytes repeat fewer bigrams than a unit of 32, so that more are left to be summed.
"""

import bz2
import hashlib
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pipeline.queries.counting import Counts, summed
from pipeline.queries.dump import read_pages, read_site
from pipeline.queries.markup import plain_lines
from pipeline.queries.ngrams import Tally
from pipeline.queries.pieces import pieces
from pipeline.queries.views import Rules, read_views

WHOLE_STORED, WHOLE_XML = 22e9, 90e9
"""Bytes of the English Wikipedia's pages-articles, as bzip2 and as XML."""
LINES = 200_000


def one_pass(dump: str, views: str) -> dict[str, float]:
    """Seconds of processor time by step."""
    seconds: dict[str, float] = {}
    begun = time.process_time()

    def lap(step: str) -> None:
        nonlocal begun
        seconds[step] = time.process_time() - begun
        begun = time.process_time()

    stored = Path(dump).read_bytes()
    namespaces = frozenset(name.casefold() for name in read_site(dump).namespaces)
    lap("")
    bz2.decompress(stored)
    lap("floor: bz2 alone")
    hashlib.sha256(stored).digest()
    lap("sha256")
    sum(len(piece.data) for piece in pieces(dump, "bz2", 0, len(stored)))
    lap("blocks")
    pages = list(read_pages(dump, 0, len(stored), namespaces, 8 << 20))
    lap("pages")
    seconds["pages"] -= seconds["blocks"]
    texts = [plain_lines(page.text, namespaces) for page in pages if page.kind == "article"]
    lap("prose")
    tally, counts = Tally(numbers=False), Counts()
    for lines in texts:
        tally.add(lines)
    lap("words, bigrams")
    counts.empty(tally.words)
    counts.empty(tally.bigrams)
    parted = counts.partitioned(300).drop_columns(["partition"])
    lap("partitions")
    summed(parted)
    lap("sums")
    read_views(
        views, 0, 1 << 40, Rules("en.wikipedia", frozenset({"talk"}), frozenset({"-"})), lambda title, number: None
    )
    lap("page views")
    return seconds


def main() -> int:
    folder = Path(os.environ.get("REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "wikipedia"
    found = sorted(folder.glob("enwiki-latest*.bz2"))
    if not found:
        print(f"{folder}: no genuine dump, nothing measured; set REAL_DATA")
        return 0
    stored, xml = found[0].stat().st_size, len(bz2.decompress(found[0].read_bytes()))
    dice = random.Random(1)
    lines = [
        f"{dice.choice(['en', 'en.m', 'de'])} Title_{dice.randrange(10**6)} {dice.randrange(90)} 0\n"
        for _ in range(LINES)
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as views:
        views.writelines(lines)
        views.flush()
        passes = [one_pass(str(found[0]), views.name) for _ in range(5)]
    took = {step: statistics.median(one[step] for one in passes) for step in passes[0] if step}
    floor, of_views = took.pop("floor: bz2 alone"), took.pop("page views")
    whole = sum(took.values())
    print(f"{found[0].name}: {stored / 1e6:.2f} MB of bz2, {xml / 1e6:.2f} MB of XML; MB a second and core\n")
    print(f"{'step':<18}{'bz2':>8}{'XML':>8}{'share':>8}")
    for step, seconds in [*took.items(), ("all steps", whole), ("floor: bz2 alone", floor)]:
        print(f"{step:<18}{stored / seconds / 1e6:>8.2f}{xml / seconds / 1e6:>8.2f}{seconds / whole:>8.1%}")
    print(f"\npage views: {LINES / of_views:,.0f} lines a second and core")
    hours, least = (WHOLE_XML / xml * seconds / 3600 for seconds in (whole, floor))
    print(
        f"the whole dump, {WHOLE_STORED / 1e9:.0f} GB of bz2 and {WHOLE_XML / 1e9:.0f} GB of XML: {hours:.1f} core-hours, "
        f"of which bz2 alone would take {least:.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
