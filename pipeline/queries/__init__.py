"""The query list, from Wikipedia and WordNet: what a pair must match to come into the corpus. `job.py` has the steps in order."""
