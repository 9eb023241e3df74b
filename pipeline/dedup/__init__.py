"""Which rows are the same pair again: `signatures` → `blocks` → `edges` → `clusters`; `exact` stands before them all.

    from pipeline import dedup

    kept, rejected = dedup.exact(candidates)                    # one partition of uids
    keys = dedup.keys(index, config, partitions=64, part=7)     # one shard's index, the seventh; rows go to files by `partition`
    found = dedup.shared(keys_of_one_partition, config)         # the keys that several rows have
    rows = dedup.blocks(index, shared_of_part, config, 64)      # the rows that have them, with what comparing needs
    found = dedup.edges(rows_of_one_partition, config)          # verified pairs
    dropped = dedup.clusters(all_edges, config, seed)           # who stays for whom
    kept, rejected = dedup.apply(index, dropped)                # one shard again

Every function is pure, and what it returns does not depend on the order of rows or on how they were partitioned.
"""

from pipeline.dedup.blocks import BLOCK_SCHEMA, KEY_SCHEMA, SHARED_SCHEMA, DedupConfig, Shared, blocks, keys, shared
from pipeline.dedup.clusters import CLUSTER_SCHEMA, apply, clusters, exact
from pipeline.dedup.edges import EDGE_SCHEMA, Edges, edges

__all__ = [
    "BLOCK_SCHEMA",
    "CLUSTER_SCHEMA",
    "EDGE_SCHEMA",
    "KEY_SCHEMA",
    "SHARED_SCHEMA",
    "DedupConfig",
    "Edges",
    "Shared",
    "apply",
    "blocks",
    "clusters",
    "edges",
    "exact",
    "keys",
    "shared",
]
