"""Everything that this project promises of a GPU, measured by one command (see __main__.py)."""
