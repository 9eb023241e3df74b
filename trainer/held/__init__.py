"""Evaluation while training: retrieval on held-out pairs and zero-shot on a labelled set, by all processes together, without a trace.

`[held]` names a corpus of pairs in the shard format, a labelled set, or both. They are read once before the first step, each process
its share: what is missing or damaged ends the run then and not after a day, and pairs that cannot be used are counted and left out.
Pictures are told apart by the SHA-256 of their bytes and texts by their letters, so that several captions of one picture, and one caption
of several pictures, are what they are. Of all that, captions and digests are kept; pictures are read again each time.

An evaluation shares pictures and texts out in pieces of one fixed size, which go through the engine like a batch (in its precision; under
ZeRO stage 3 each process must make the same number of calls, and makes the last ones with nothing of its own). The features meet on every
process, which computes its share of the figures (`scores.py`). No number depends on who had which piece; the size of a piece, which follows
from the batch, may change the last digit of a feature.

The model is in eval mode meanwhile, and each module afterwards in the mode that it had. Batch norm normalises with the running
statistics of process 0, those that are exported. Where the run keeps an average of the weights, it is scored as well, in their place.
"""

from trainer.held.evaluating import Held, Scored
from trainer.held.opening import find, open_held

__all__ = ["Held", "Scored", "find", "open_held"]
