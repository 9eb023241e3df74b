"""From a corpus manifest to batches: sample order, row reading, pictures to pixels, prefetching."""
