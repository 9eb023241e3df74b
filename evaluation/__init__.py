"""From weights and shards to numbers one can defend: zero-shot scores, retrieval, and how much of a test is in the corpus."""
