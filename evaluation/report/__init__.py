"""The overlap report: figures, evidence, page, and the check that recomputes them.

Reading, printing and verifying a report loads neither ray nor torch.
"""

from evaluation.report.checking import verify

__all__ = ["verify"]
