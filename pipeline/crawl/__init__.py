"""Crawl: candidates in, pictures or a named rejection out. `stage.py` is the door; README.md is the page of this package."""
