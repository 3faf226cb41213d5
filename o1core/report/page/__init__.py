"""The report page: one HTML file of runs and studies."""

from .writer import write_page

__all__ = ["write_page"]
