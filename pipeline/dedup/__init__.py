"""Which rows are the same pair again: copies → keys → blocks → edges → clusters; `exact` stands before them all.

    from pipeline import dedup

    kept, rejected = dedup.exact(candidates)                     # one partition of uids

    found = dedup.kinds(index, config, seed, 64, part=7)         # one file's index, the seventh; kinds go to files by `partition`
    copied = dedup.copies(kinds_of_one_partition, seed, 64)      # rows that are equal to one of another file
    rows = index.take(dedup.originals(len(index), found.within, copied_of_part))
    keys = dedup.keys(rows, config, partitions=64, part=7)
    some = dedup.shared(keys_of_one_partition, config)           # the blocks that several rows have
    rows = dedup.blocks(rows, shared_of_part, config, 64, 7)     # the rows that have them, with what comparing needs
    found = dedup.edges(rows_of_one_partition, config, seed, 64) # verified pairs
    decisions = dedup.decide(all_edges, 64)                      # who stays for whom
    gone = dedup.clusters(edges, decisions, originals, config)   # of one partition
    kept, rejected = dedup.apply(index, gone_of_part, found.within, config)

Every function is pure, and what it returns does not depend on the order of rows or on how they were partitioned.
"""

from pipeline.dedup.blocks import BLOCK_SCHEMA, KEY_SCHEMA, SHARED_SCHEMA, Shared, blocks, keys, shared
from pipeline.dedup.clusters import CLUSTER_SCHEMA, DECISION_SCHEMA, apply, clusters, decide, exact
from pipeline.dedup.compared import COLUMNS, DedupConfig
from pipeline.dedup.copies import (
    COPY_SCHEMA,
    KIND_SCHEMA,
    ORIGINAL_SCHEMA,
    WITHIN_SCHEMA,
    Copies,
    Kinds,
    copies,
    kinds,
    originals,
)
from pipeline.dedup.edges import EDGE_SCHEMA, Edges, edges

__all__ = [
    "BLOCK_SCHEMA",
    "CLUSTER_SCHEMA",
    "COLUMNS",
    "COPY_SCHEMA",
    "DECISION_SCHEMA",
    "EDGE_SCHEMA",
    "KEY_SCHEMA",
    "KIND_SCHEMA",
    "ORIGINAL_SCHEMA",
    "SHARED_SCHEMA",
    "WITHIN_SCHEMA",
    "Copies",
    "DedupConfig",
    "Edges",
    "Kinds",
    "Shared",
    "apply",
    "blocks",
    "clusters",
    "copies",
    "decide",
    "edges",
    "exact",
    "keys",
    "kinds",
    "originals",
    "shared",
]
