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
        f"minimand.study needs the package {error.name!r}. Install the extra: pip install 'minimand[study]'"
    ) from error

from minimand.study._candidates import Candidate, Part, default_candidates, read_candidates
from minimand.study._data import BUILT_IN, Data, Fold, load_data
from minimand.study._engines import ENGINES, LocalEngine, ProcessesEngine, RayEngine
from minimand.study._errors import StudyError
from minimand.study._models import mlp
from minimand.study._page import write_page
from minimand.study._problem import build_trainer
from minimand.study._results import Results
from minimand.study._settings import Settings
from minimand.study._storage import load_results
from minimand.study._study import Study
from minimand.study._tuning import Tuning, wilcoxon_pruner

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
    "write_page",
]
