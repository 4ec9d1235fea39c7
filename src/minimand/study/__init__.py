"""Comparisons of training objectives on data, with honest splits and statistics."""

try:
    from minimand.study._candidates import Candidate, Part, default_candidates, read_candidates
    from minimand.study._data import Data, Fold, array_data
    from minimand.study._engines import ENGINES, Engine, LocalEngine, ProcessesEngine, RayEngine
    from minimand.study._figures import Svg
    from minimand.study._files import BUILT_IN, load_data
    from minimand.study._metrics import Metric
    from minimand.study._networks import convnet, convnet_1d, mlp
    from minimand.study._page import write_page
    from minimand.study._problem import build_trainer
    from minimand.study._results import Results, load_results
    from minimand.study._settings import StudyError, Tuning, wilcoxon_pruner
    from minimand.study._streams import stream_data
    from minimand.study._study import Study, compare
    from minimand.study._targets import Target, target_of
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
    "Metric",
    "Part",
    "ProcessesEngine",
    "RayEngine",
    "Results",
    "Study",
    "StudyError",
    "Svg",
    "Target",
    "Tuning",
    "array_data",
    "build_trainer",
    "compare",
    "convnet",
    "convnet_1d",
    "default_candidates",
    "load_data",
    "load_results",
    "mlp",
    "read_candidates",
    "stream_data",
    "target_of",
    "wilcoxon_pruner",
    "write_page",
]
