"""Tools for sparse models: a report, the groups of weights of a unit, and a smaller model with the same outputs."""

from minimand.sparsity._compact import compact, unit_groups
from minimand.sparsity._report import LayerSparsity, SparsityReport, report

__all__ = ["LayerSparsity", "SparsityReport", "compact", "report", "unit_groups"]
