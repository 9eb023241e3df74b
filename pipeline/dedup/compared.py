"""What is compared of a row, and the configuration that says so."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.content.forms import normal_forms
from pipeline.contracts.config import StrictModel
from pipeline.dedup.exact_keys import ExactKey
from pipeline.keys import one_array

COLUMNS = ["uid", "caption", "image_sha256", "pdq256", "pdq_quality"]
"""What `compared` reads of a row."""

PURPOSE = "dedup"
"""What the choice keys of dedup are for: the smallest key of a set of duplicates is kept."""


class DedupConfig(StrictModel):
    """What counts as the same pair again."""

    exact: tuple[ExactKey, ...] = ()
    """What may occur once, beside the identical pair, which always goes: url and caption (before the crawl), source (after it)."""
    by: Literal["pair", "caption", "image"] = "pair"
    """pair: near-equal caption and near-equal picture; caption, image: one of them is enough."""
    threshold: float = Field(default=0.8, gt=0.0, le=1.0)
    """Captions are near-equal from this Jaccard similarity of their shingles."""
    num_perm: int = Field(default=128, ge=16, le=1024)
    seed: int = Field(default=1, ge=0, lt=2**32)
    """Seed of the MinHash permutations, as in datasketch."""
    image_distance: int = Field(default=31, ge=0, le=31)
    """Pictures are near-equal up to this many differing bits of PDQ's 256 (31: the distance that PDQ's authors recommend)."""
    image_quality: int = Field(default=50, ge=0, le=100)
    """PDQ hashes of lower quality (flat pictures) are not compared; equal bytes still are."""
    max_block: int = Field(default=1024, ge=2)
    """Rows of one block that are compared all with all; a larger block is split first (dedup/blocks.py)."""


def compared(table: pa.Table, config: DedupConfig) -> pa.Table:
    """uid, text (the caption in normal form, null where that is empty), image_sha256, pdq256 and pdq_quality of rows with COLUMNS.

    What the mode does not compare is null.
    """
    rows = table.num_rows
    if config.by == "image":
        texts: pa.Array = pa.nulls(rows, pa.string())
    else:
        forms = normal_forms(table["caption"])
        texts = pc.if_else(pc.equal(forms, ""), None, forms)
    pictures = {
        name: pa.nulls(rows, table[name].type) if config.by == "caption" else table[name] for name in COLUMNS[2:]
    }
    return pa.table({"uid": table["uid"], "text": texts, **pictures})


def has_good_pdq(rows: pa.Table, config: DedupConfig) -> npt.NDArray[np.bool_]:
    """Whether each row has a PDQ hash whose quality allows comparing it."""
    quality = one_array(rows["pdq_quality"]).fill_null(0).to_numpy(zero_copy_only=False)
    valid: npt.NDArray[np.bool_] = np.asarray(one_array(rows["pdq256"]).is_valid())
    good: npt.NDArray[np.bool_] = valid & (quality >= config.image_quality)
    return good


def comparable(rows: pa.Table, config: DedupConfig) -> npt.NDArray[np.bool_]:
    """Whether each row of `compared` has what the mode compares. A row that has not resembles no other, and stays."""
    usable: npt.NDArray[np.bool_] = np.ones(rows.num_rows, np.bool_)
    if config.by != "image":
        usable &= np.asarray(one_array(rows["text"]).is_valid())
    if config.by != "caption":
        usable &= np.asarray(one_array(rows["image_sha256"]).is_valid()) | has_good_pdq(rows, config)
    return usable
