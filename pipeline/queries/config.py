"""QueriesConfig: which sources make the query list, and where each is cut. A source is used when its table is there.

The four sources and their thresholds are those of section 2.2 of the CLIP paper (Radford et al. 2021), with the numbers where MetaCLIP's
reconstruction (Xu et al. 2023, appendix) had to choose them. PMI values depend on how a corpus was counted, so that a published
threshold means nothing on another one: the default is a number of bigrams, and the threshold that it amounts to is recorded.
"""

from typing import Literal

import pydantic

from pipeline.contracts.config import StrictModel, not_semantic
from pipeline.engine import EngineConfig
from pipeline.queries.views import FAMILIES

SOURCES = ("words", "bigrams", "titles", "wordnet")
"""The order of the list, and which source a query is filed under when several have it: the first. As in the paper, WordNet adds last
what is missing."""


class OutConfig(StrictModel):
    """Where everything goes."""

    out: str = not_semantic(description="folder or s3:// prefix; queries.parquet, .txt and .json are written here")


class WikipediaConfig(StrictModel):
    """The dump that words and bigrams are counted in, and whose redirects lead page views to their article."""

    dumps: tuple[str, ...] = not_semantic(
        min_length=1, description="MediaWiki XML exports (pages-articles), bzip2 or plain: files, patterns, folders"
    )
    max_page_bytes: int = pydantic.Field(
        default=8 << 20, ge=1 << 10, description="XML of one page; a larger one is skipped, named and counted"
    )
    unit_bytes: int = not_semantic(
        32 << 20, ge=1 << 10, description="bytes of a dump file (compressed, if it is) that one unit counts"
    )


class WordsConfig(StrictModel):
    """Single words."""

    min_count: int = pydantic.Field(default=100, ge=1, description="how often a word must stand in the dump")
    numbers: bool = pydantic.Field(default=False, description="whether a number without a letter is a word")
    cap: int = pydantic.Field(default=300_000, ge=1, description="at most this many, the most frequent first")


class BigramsConfig(StrictModel):
    """Pairs of neighbouring words by pointwise mutual information."""

    min_count: int = pydantic.Field(
        default=25,
        ge=1,
        description="how often a pair must occur: PMI favours the rare, and one chance pair has the highest",
    )
    top_k: int | None = pydantic.Field(default=None, ge=1, description="so many of highest PMI; or min_pmi")
    min_pmi: float | None = pydantic.Field(default=None, description="all from this PMI (bits); or top_k")
    cap: int = pydantic.Field(default=100_000, ge=1, description="at most this many new ones, the highest PMI first")

    @pydantic.model_validator(mode="after")
    def _one_threshold(self) -> "BigramsConfig":
        if (self.top_k is None) == (self.min_pmi is None):
            given = "neither is given" if self.top_k is None else f"top_k is {self.top_k} and min_pmi is {self.min_pmi}"
            raise ValueError(f"bigrams are cut by top_k or by min_pmi, and {given}; set exactly one of the two")
        return self


_NAMESPACES = (
    "Media", "Special", "Talk", "User", "User talk", "Wikipedia", "Wikipedia talk", "WP", "WT", "Project", "Project talk",
    "File", "File talk", "Image", "Image talk", "MediaWiki", "MediaWiki talk", "Template", "Template talk", "Help", "Help talk",
    "Category", "Category talk", "Portal", "Portal talk", "Book", "Book talk", "Draft", "Draft talk", "Education Program",
    "Education Program talk", "TimedText", "TimedText talk", "Module", "Module talk", "Gadget", "Gadget talk",
    "Gadget definition", "Gadget definition talk", "Topic", "MOS", "MOS talk", "Event", "Event talk",
)  # fmt: skip


class TitlesConfig(StrictModel):
    """Article titles by page views."""

    pageviews: tuple[str, ...] = not_semantic(
        min_length=1,
        description="Wikimedia's hourly or daily page-view files, plain, gz or bz2: files, patterns, folders",
    )
    project: str = pydantic.Field(
        default="en.wikipedia",
        pattern=rf"^[a-z][a-z0-9-]*\.({'|'.join(FAMILIES)})$",
        description="LANGUAGE.FAMILY, as in daily files",
    )
    min_views: int = pydantic.Field(default=70, ge=1, description="views, summed over all files, that a title needs")
    namespaces: tuple[str, ...] = pydantic.Field(
        default=_NAMESPACES, description="prefixes before ':' that make a page no article, besides those of the dump"
    )
    skip: tuple[str, ...] = pydantic.Field(
        default=("Main Page", "-", "Undefined"), description="titles that are no article: entry pages, failed requests"
    )
    cap: int = pydantic.Field(default=100_000, ge=1, description="at most this many new ones, the most viewed first")
    unit_bytes: int = not_semantic(
        64 << 20, ge=1 << 10, description="bytes of a page-view file that one unit counts; a gz file is one unit"
    )


class WordnetConfig(StrictModel):
    """The names of WordNet's synsets."""

    folder: str = not_semantic(description="where data.noun, data.verb, data.adj and data.adv are (wndb(5WN))")
    lemmas: Literal["first", "all"] = pydantic.Field(
        default="first", description="first: the lemma that names a synset; all: its synonyms too"
    )
    cap: int = pydantic.Field(default=200_000, ge=1, description="at most this many new ones")


class ListConfig(StrictModel):
    """The list as a whole."""

    limit: int = pydantic.Field(default=500_000, ge=1, le=500_000, description="queries; what comes last is cut")
    max_chars: int = pydantic.Field(default=256, ge=1, description="code points of a query; longer ones are dropped")


class QueriesConfig(StrictModel):
    """Everything that `python -m pipeline queries` reads."""

    run: OutConfig
    wikipedia: WikipediaConfig | None = None
    words: WordsConfig | None = None
    bigrams: BigramsConfig | None = None
    titles: TitlesConfig | None = None
    wordnet: WordnetConfig | None = None
    list: ListConfig = ListConfig()
    engine: EngineConfig = not_semantic(EngineConfig())

    @property
    def used(self) -> tuple[str, ...]:
        """The sources whose table is there, in the order of the list."""
        return tuple(name for name in SOURCES if getattr(self, name) is not None)

    @pydantic.model_validator(mode="after")
    def _sources_fit(self) -> "QueriesConfig":
        if not self.used:
            raise ValueError(f"no source of queries; add a table [{'], ['.join(SOURCES)}]")
        counted = [name for name in ("words", "bigrams") if getattr(self, name) is not None]
        if counted and self.wikipedia is None:
            raise ValueError(f"[{counted[0]}] is counted in a dump and there is none; set wikipedia.dumps")
        if self.wikipedia is not None and not counted and self.titles is None:
            raise ValueError("[wikipedia] names a dump that no source reads; add [words], [bigrams] or [titles]")
        return self
