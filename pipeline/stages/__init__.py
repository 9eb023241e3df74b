"""One file per stage: what its units are, what a unit reads, and which pure function does the work. pipeline/run.py has the order.

Everything else is done by `pipeline.engine`. A function that runs on a worker is a module-level function here, given what it needs by
`functools.partial`: Ray ships it by name.
"""
