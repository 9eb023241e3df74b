"""How much of an evaluation set is inside a training corpus, and whether that changed the score (CLIP paper, section 5)."""
