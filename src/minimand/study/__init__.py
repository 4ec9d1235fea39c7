"""Comparisons of training objectives on data, with honest splits and statistics."""

try:
    from minimand.study._candidates import Candidate, Part, default_candidates, read_candidates
    from minimand.study._data import BUILT_IN, Data, Fold, load_data
    from minimand.study._engines import ENGINES, Engine, LocalEngine, ProcessesEngine, RayEngine
    from minimand.study._figures import Svg, results_figure
    from minimand.study._models import mlp
    from minimand.study._page import write_page
    from minimand.study._problem import build_trainer
    from minimand.study._results import Results, load_results, results_table
    from minimand.study._settings import Settings, StudyError, Tuning, wilcoxon_pruner
    from minimand.study._study import Study
except ModuleNotFoundError as error:
    raise ImportError(
        f"minimand.study needs the package {error.name!r}. Install the extra: pip install 'minimand[study]'"
    ) from error

__all__ = [
    "BUILT_IN",
    "ENGINES",
    "Candidate",
    "Data",
    "Engine",
    "Fold",
    "LocalEngine",
    "Part",
    "ProcessesEngine",
    "RayEngine",
    "Results",
    "Settings",
    "Study",
    "StudyError",
    "Svg",
    "Tuning",
    "build_trainer",
    "default_candidates",
    "load_data",
    "load_results",
    "mlp",
    "read_candidates",
    "results_figure",
    "results_table",
    "wilcoxon_pruner",
    "write_page",
]
