"""What a sparse model is worth: a report, the groups that matter, and a smaller model with the same outputs."""

from minimand.sparsity._compact import compact
from minimand.sparsity._groups import unit_groups
from minimand.sparsity._report import report

__all__ = ["compact", "report", "unit_groups"]
