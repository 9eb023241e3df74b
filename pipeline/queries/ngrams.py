"""Words and their neighbours: what is counted in a text, and pointwise mutual information.

A word is a token of the house's normal form (`pipeline.content.text.normal_form`) with at least one letter, so that as a query it
matches itself: "mp3" and "c++" have letters, "1984" has none and counts only if numbers do, "&" never. Hence a compound with a hyphen is
two words, "well-known" as much as "well known", and together a bigram. What follows an apostrophe with one or two letters ("dog's",
"they're") is the end of a word, not a word: nobody means the query "s".

In scripts written without spaces (`pipeline.content.scripts`) a token is a whole clause, and counting it would
count no words: such tokens are skipped and counted as `unsegmented`. Those languages get their queries from titles.

A bigram is two words in one clause: never across a line, any punctuation but a hyphen inside a compound, a symbol, or something cut
out of the text. So it is found in the normal form of the text that it was counted in.
"""

import itertools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np
import numpy.typing as npt

from pipeline.content.scripts import is_spaceless
from pipeline.content.text import normal_form
from pipeline.queries.markup import BREAK

MAX_WORD_CHARS = 256
"""Longer tokens are no words; a query has at most so many characters."""

_INSIDE = "-\u2010\u2011'\u2018\u2019#&%"
"""Punctuation that may stand inside a clause: hyphens and apostrophes in a word, the sharp of C#, what is a word of its own."""
_CLAUSE_ENDS = {
    code: BREAK
    for code in range(sys.maxunicode + 1)
    if (unicodedata.category(chr(code))[0] == "P" and chr(code) not in _INSIDE)
    or chr(code) in "|~<>^`=\n\r\t\v\f\u2028\u2029"
}
_LOOSE = re.compile(
    r"['\u2018\u2019]{2,}"  # italics that were not closed
    r"|(?<=\w)['\u2018\u2019]\w{1,2}(?!\w)"  # the end of a word, not a word
    r"|(?<!\w)['\u2018\u2019\u2010\u2011-]+|['\u2018\u2019\u2010\u2011-]+(?!\w)"  # quotes and dashes, not inside a word
)


class Tally:
    """Counts over texts. `words` and (if wanted) `bigrams` by their text; `tokens` counts every word, `unsegmented` what was skipped."""

    def __init__(self, *, numbers: bool, pairs: bool = True) -> None:
        self._numbers, self._pairs = numbers, pairs
        self.words: Counter[str] = Counter()
        self.bigrams: Counter[str] = Counter()
        self.tokens = 0
        self.unsegmented = 0

    def add(self, lines: Iterable[str]) -> None:
        """Count the words and bigrams of lines of plain text."""
        words: list[str] = []
        bigrams: list[str] = []
        for line in lines:
            for clause in _LOOSE.sub(BREAK, line.translate(_CLAUSE_ENDS)).split(BREAK):
                if clause and not clause.isspace():
                    for run in self._runs(normal_form(clause)):
                        words += run
                        if self._pairs:
                            bigrams += map(" ".join, itertools.pairwise(run))
        self.words.update(words)
        self.bigrams.update(bigrams)
        self.tokens += len(words)

    def _runs(self, text: str) -> Iterator[list[str]]:
        """The words of a clause in normal form, cut where a token is none."""
        run: list[str] = []
        for token in text.split(" "):
            if (token.isascii() and token.isalpha() and len(token) <= MAX_WORD_CHARS) or self._is_word(token):
                run.append(token)
            elif run:
                yield run
                run = []
        if run:
            yield run

    def _is_word(self, token: str) -> bool:
        if len(token) > MAX_WORD_CHARS or not token:
            return False
        if is_spaceless(token):
            self.unsegmented += 1
            return False
        has_letter = any(char.isalpha() for char in token)
        return has_letter or (self._numbers and any(char.isnumeric() for char in token))


def pmi(
    both: npt.NDArray[np.int64], first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], tokens: int
) -> npt.NDArray[np.float64]:
    """log2(n_ij N / (n_i n_j)) in bits, float64 of shape (n,), for pairs seen `both` times of words seen `first` and `second` times.

    N is the number of words counted, as in NLTK's BigramAssocMeasures.pmi over MetaCLIP's tables. Rounded to 6 places, so that a
    processor's last bit does not decide an order.
    """
    ratio = both.astype(np.float64) * tokens / (first.astype(np.float64) * second.astype(np.float64))
    return cast(npt.NDArray[np.float64], np.round(np.log2(ratio), 6))
