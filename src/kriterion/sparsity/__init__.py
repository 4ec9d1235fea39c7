"""What a sparse model is worth: a report, the groups that matter, and a smaller model with the same outputs."""

from kriterion.sparsity.compact import compact
from kriterion.sparsity.groups import unit_groups
from kriterion.sparsity.report import report

__all__ = ["compact", "report", "unit_groups"]
