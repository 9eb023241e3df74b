"""From a corpus of image-text pairs to CLIP weights; `train.py` is the loop, read it first."""
