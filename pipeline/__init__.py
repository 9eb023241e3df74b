"""From web sources to a corpus of image-text pairs: the stages, the contracts between the packages, the content rules."""
