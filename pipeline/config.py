"""PipelineConfig: one frozen table per stage. `pipeline/configs/example.toml` shows the keys that people change; `--check` prints all."""

import pydantic

from pipeline.balance import BalanceConfig
from pipeline.contracts.config import Json, StrictModel, not_semantic, semantic
from pipeline.crawl.config import CrawlConfig
from pipeline.dedup import DedupConfig
from pipeline.engine import EngineConfig
from pipeline.match import Mode
from pipeline.policy import hook
from pipeline.policy.hook import PolicyConfig
from pipeline.quality import QualityConfig
from pipeline.shard import ShardConfig
from pipeline.sources.files import SourcesConfig


class RunConfig(StrictModel):
    """Where everything goes, and the seed of every choice."""

    out: str = not_semantic(description="folder or s3:// prefix; everything this run writes is under it")
    seed: int = pydantic.Field(default=17, ge=0, lt=1 << 63, description="every choice is BLAKE2b(uid, key = seed)")


class FilterConfig(StrictModel):
    """The query list that a caption must match."""

    queries: str = not_semantic(
        description="txt (one query a line) or Parquet; its digest, not its place, enters the stage digest"
    )
    mode: Mode = pydantic.Field(
        default="normalised",
        description="how a query is looked for (match.py): by normal form, or exactly as MetaCLIP does",
    )


class PrecapConfig(StrictModel):
    """What is fetched at most for a query. Separate from balance.cap, so that another cap never means another crawl."""

    per_query: int = pydantic.Field(
        default=40_000, ge=1, description="balance.cap over the share of fetches expected to succeed"
    )


class PipelineConfig(StrictModel):
    """From sources to shards. Tables are in the order of the stages."""

    run: RunConfig
    sources: SourcesConfig
    quality: QualityConfig = QualityConfig()
    filter: FilterConfig
    precap: PrecapConfig = PrecapConfig()
    crawl: CrawlConfig = CrawlConfig()
    policy: tuple[PolicyConfig, ...] = ()
    dedup: DedupConfig = DedupConfig()
    balance: BalanceConfig = BalanceConfig()
    shard: ShardConfig = ShardConfig()
    engine: EngineConfig = not_semantic(EngineConfig())

    @pydantic.field_validator("policy")
    @classmethod
    def _policies_are_told_apart(cls, value: tuple[PolicyConfig, ...]) -> tuple[PolicyConfig, ...]:
        names = [policy.name for policy in value]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two tables have the same name, of {names!r}; rejected rows must tell them apart: rename one"
            )
        return value

    @pydantic.model_validator(mode="after")
    def _pictures_can_be_compared(self) -> "PipelineConfig":
        if not self.crawl.perceptual_hashes and self.dedup.by != "caption":
            raise ValueError(
                f"crawl.perceptual_hashes is off but dedup.by is {self.dedup.by!r}, which compares them; "
                "set dedup.by=caption or leave the hashes on"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _precap_leaves_enough(self) -> "PipelineConfig":
        if self.precap.per_query < self.balance.cap:
            raise ValueError(
                f"precap.per_query is {self.precap.per_query} but balance.cap is {self.balance.cap}; "
                "fetch at least what the cap keeps: raise precap.per_query or lower balance.cap"
            )
        return self


def identity(config: PipelineConfig) -> dict[str, Json]:
    """What of a configuration makes the corpus, as the manifest has it: the semantic keys, a hook's files by their content.

    Raises InputError for a hook that cannot be called.
    """
    policies: list[Json] = [hook.identity(policy, hook.load(policy)) for policy in config.policy]
    return {**semantic(config), "policy": policies}
