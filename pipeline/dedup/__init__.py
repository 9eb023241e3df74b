"""Which rows are the same pair again: `signatures` → `blocks` → `edges` → `clusters`; `exact` stands before them all.

    from pipeline import dedup

    kept, rejected = dedup.exact(candidates)                    # one partition of uids
    rows = dedup.blocks(index, config, partitions=64)           # one shard's index; rows go to files by `partition`
    found = dedup.edges(rows_of_one_partition, config)          # verified pairs
    dropped = dedup.clusters(all_edges, config, seed)           # who stays for whom
    kept, rejected = dedup.apply(index, dropped)                # one shard again

Every function is pure, and what it returns does not depend on the order of rows or on how they were partitioned.
"""

from pipeline.dedup.blocks import BLOCK_SCHEMA, DedupConfig, blocks
from pipeline.dedup.clusters import CLUSTER_SCHEMA, apply, clusters, exact
from pipeline.dedup.edges import EDGE_SCHEMA, Edges, edges

__all__ = [
    "BLOCK_SCHEMA",
    "CLUSTER_SCHEMA",
    "EDGE_SCHEMA",
    "DedupConfig",
    "Edges",
    "apply",
    "blocks",
    "clusters",
    "edges",
    "exact",
]
