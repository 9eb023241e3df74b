"""WordNet's synsets: the names that the last source of the query list has.

Reads the data files of Princeton's WordNet as Debian's `wordnet-base` and every distribution of it have them, in the format of wndb(5WN):
`synset_offset lex_filenum ss_type w_cnt word lex_id [word lex_id...] p_cnt ...`, w_cnt in hexadecimal, underscores for spaces, and behind
some adjectives a marker of where they may stand: "galore(ip)". The first word names the synset.
"""

import re
from collections import Counter
from typing import Literal

from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")

_MARKER = re.compile(r"\((?:a|p|ip)\)$")


def check_folder(folder: str) -> list[str]:
    """The four files. Raises InputError when one is missing."""
    uris = [storage.join(folder, name) for name in FILES]
    for uri in uris:
        if not storage.exists(uri):
            raise InputError(f"{uri}: no such file; set wordnet.folder to a folder with {', '.join(FILES)}")
    return uris


def read_lemmas(folder: str, lemmas: Literal["first", "all"]) -> Counter[str]:
    """How many synsets each lemma names (`first`) or belongs to (`all`). Raises InputError for a line that is no synset, and where there
    is none at all."""
    found: Counter[str] = Counter()
    for uri in check_folder(folder):
        for number, line in enumerate(storage.read_text(uri).split("\n"), 1):
            if line and not line.startswith(" "):  # the licence is indented
                words = _words(line)
                if words is None:
                    raise InputError(
                        f"{uri}: line {number:,} is no synset ({line[:60]!r}); give WordNet's own data files"
                    )
                found.update(set(words if lemmas == "all" else words[:1]))
    if not found:
        raise InputError(f"{folder}: no synset in {', '.join(FILES)}; give WordNet's own data files")
    return found


def _words(line: str) -> list[str] | None:
    fields = line.split(" ")
    try:
        number = int(fields[3], 16)
        words = [fields[4 + 2 * place] for place in range(number)]
        well_formed = fields[0].isdigit() and fields[2] in "nvasr" and fields[4 + 2 * number].isdigit() and number > 0
    except (IndexError, ValueError):
        return None
    return [_MARKER.sub("", word).replace("_", " ") for word in words] if well_formed else None
