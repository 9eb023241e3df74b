"""What the fork server imports before a worker of the loader comes from it, so that no worker does so by itself.

The tokenizer's programs are loaded when it is first used, and numba with them: a second of work, which each worker would do again.
"""

from trainer.data import loader as loader
from trainer.tokenizer import Tokenizer

Tokenizer([])([""])
