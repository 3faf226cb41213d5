"""Scripts that measure: each is run as `python -m bench.NAME` from the repository's root and says what it prints."""
