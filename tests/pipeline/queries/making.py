"""Small dumps and page-view files whose content is known, for the tests of this folder."""

import bz2
import os
import random
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

HEADER = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="en">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <namespaces>
      <namespace key="-1" case="first-letter">Special</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="1" case="first-letter">Talk</namespace>
      <namespace key="14" case="first-letter">Category</namespace>
    </namespaces>
  </siteinfo>
"""
FOOTER = "</mediawiki>\n"


def page(
    title: str, text: str, *, ns: int | None = 0, redirect: str | None = None, model: str | None = "wikitext"
) -> str:
    """A <page> as MediaWiki writes it."""
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n"
        + (f"    <ns>{ns}</ns>\n" if ns is not None else "")
        + "    <id>1</id>\n"
        + (f'    <redirect title="{escape(redirect)}" />\n' if redirect is not None else "")
        + "    <revision>\n      <id>2</id>\n"
        + (f"      <model>{model}</model>\n" if model is not None else "")
        + f'      <text xml:space="preserve">{escape(text, {chr(34): "&quot;"})}</text>\n    </revision>\n  </page>\n'
    )


def dump(*pages: str) -> bytes:
    return (HEADER + "".join(pages) + FOOTER).encode()


def streams(data: bytes, seed: int, most: int = 3000) -> bytes:
    """bzip2 in streams that end anywhere, as pbzip2 writes it."""
    dice, parts, at = random.Random(seed), [], 0
    while at < len(data):
        size = dice.randrange(1, most)
        parts.append(bz2.compress(data[at : at + size], dice.choice([1, 9])))
        at += size
    return b"".join(parts)


def real_data() -> Path:
    """The folder of real data, or a skip."""
    folder = Path(os.environ.get("REAL_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")) / "wikipedia"
    if not folder.is_dir():
        pytest.skip("no real data; set REAL_DATA")
    return folder
