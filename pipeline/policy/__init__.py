"""Rules of the operator's own about single rows: block lists, classifiers, filters of personal data. `hook.py` says how one is written."""
