"""The page of a study."""

from kriterion.report.page import write_page

__all__ = ["write_page"]
