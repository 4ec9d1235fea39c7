"""Comparing objectives on data, honestly."""

try:
    import filelock  # noqa: F401
    import jinja2  # noqa: F401
    import loky  # noqa: F401
    import matplotlib  # noqa: F401
    import polars  # noqa: F401
    import rich  # noqa: F401
    import scipy  # noqa: F401
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"kriterion.study needs the package {error.name!r}. Install the extra: pip install 'kriterion[study]'"
    ) from error

from kriterion.study.candidates import Candidate, Part, default_candidates, read_candidates
from kriterion.study.data import BUILT_IN, Data, Fold, load_data
from kriterion.study.engines import ENGINES, LocalEngine, ProcessesEngine, RayEngine
from kriterion.study.errors import StudyError
from kriterion.study.models import mlp
from kriterion.study.problem import build_trainer
from kriterion.study.results import Results
from kriterion.study.settings import Settings
from kriterion.study.storage import load_results
from kriterion.study.study import Study
from kriterion.study.tuning import Tuning, wilcoxon_pruner

__all__ = [
    "BUILT_IN",
    "ENGINES",
    "Candidate",
    "Data",
    "Fold",
    "LocalEngine",
    "Part",
    "ProcessesEngine",
    "RayEngine",
    "Results",
    "Settings",
    "Study",
    "StudyError",
    "Tuning",
    "build_trainer",
    "default_candidates",
    "load_data",
    "load_results",
    "mlp",
    "read_candidates",
    "wilcoxon_pruner",
]
