"""WordNet's data files: a small one written by hand, and Princeton's."""

from pathlib import Path

import pytest

from pipeline.contracts.errors import InputError
from pipeline.queries.wordnet import FILES, check_folder, read_lemmas

LICENCE = "  1 This software and database is being provided to you  \n"
NOUNS = [
    "00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 ~ 04424418 n 0000 | that which is perceived  ",
    "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus Canis  ",
    "10114209 18 n 02 dog 0 frump 0 001 @ 09787534 n 0000 | a dull unattractive unpleasant girl or woman  ",
    "00000001 03 n 0b a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 k 0 000 | eleven words: the number is hexadecimal  ",
]
ADJECTIVES = ["00014358 00 s 02 galore(ip) 0 abounding 0 001 & 00013887 a 0000 | existing in abundance  "]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_text(LICENCE)
    (tmp_path / "data.noun").write_text(LICENCE + "\n".join(NOUNS) + "\n")
    (tmp_path / "data.adj").write_text(LICENCE + "\n".join(ADJECTIVES) + "\n")
    return tmp_path


def test_names_of_synsets_and_all_lemmas(folder: Path) -> None:
    assert read_lemmas(str(folder), "first") == {"entity": 1, "dog": 2, "a": 1, "galore": 1}
    names = {"entity": 1, "dog": 2, "domestic dog": 1, "Canis familiaris": 1, "frump": 1, "galore": 1, "abounding": 1}
    assert read_lemmas(str(folder), "all") == names | dict.fromkeys("abcdefghijk", 1)


def test_what_is_no_wordnet(folder: Path) -> None:
    (folder / "data.verb").write_text("to run\n")
    with pytest.raises(InputError, match=r"data.verb: line 1 is no synset \('to run'\)"):
        read_lemmas(str(folder), "first")
    (folder / "data.verb").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=r"data.verb: .*UTF-8"):
        read_lemmas(str(folder), "first")
    for name in FILES:
        (folder / name).write_text(LICENCE)
    with pytest.raises(InputError, match=r"no synset in data.noun, .*; give WordNet's own data files"):
        read_lemmas(str(folder), "first")
    (folder / "data.verb").unlink()
    with pytest.raises(InputError, match=r"data.verb: no such file; set wordnet.folder"):
        check_folder(str(folder))


def test_princetons() -> None:
    """WordNet 3.0 has 117,659 synsets (wnstats(7WN))."""
    place = Path("/usr/share/wordnet")
    if not (place / "data.noun").is_file():
        pytest.skip("no WordNet here; apt-get install wordnet-base")
    lemmas = read_lemmas(str(place), "first")
    assert sum(lemmas.values()) == 117_659
    assert lemmas["cut"] == 54
    assert not [lemma for lemma in lemmas if "_" in lemma or "(" in lemma]
