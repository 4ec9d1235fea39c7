"""Every test starts from the same seeds and leaves the global settings as they were."""

import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.metadata
import os
import sys
from pathlib import Path

# JAX's compiled programs, shared by the workers, the processes that tests start, and later runs. Before JAX is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# A test runs a program a few times: machine code takes longer to be made fast than to be run, with the older emitters,
# which later versions of XLA don't have, a third less long. Two devices, for tests of training on several; all others
# use the first.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
    + " --xla_cpu_use_fusion_emitters=false"
    * any(found.version.startswith("0.10.") for found in importlib.metadata.distributions(name="jaxlib")),
)
# Workers have a core each: threads of several that wait for each other take three times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import numpy as np
import pytest

# The process that hands tests to the workers needs no Keras, and hands them out seconds earlier without it.
BACKEND = os.environ.get("KERAS_BACKEND")
if not BACKEND:
    import keras

    BACKEND = keras.backend.backend()

# A tenth of the time was spent in looking for garbage among what is imported and compiled.
gc.set_threshold(50_000, 20, 20)


class _NoTensorFlow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Keras's `set_random_seed` imports it wherever it is installed: half a minute for each worker."""

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "tensorflow" else None

    def exec_module(self, module):
        raise ModuleNotFoundError(module.__name__)


if BACKEND != "tensorflow":
    sys.meta_path.insert(0, _NoTensorFlow())

# The command starts processes of its own, at several seconds each; what it runs is tested on all backends, and what it
# stores is stored alike, and so is its page. Only JAX maps a step. That a package is installed and found is the same
# everywhere, and its suites are those of test_conformance.py. Whether an option is read is the same everywhere, too, what
# is said of a file that cannot be, what a study makes of tables and of scores, and what a smaller model leaves out.
_ONCE = [
    "compact",
    "comparison",
    "extension",
    "fuzz",
    "gradients_of_graphs",
    "images",
    "in_place",
    "options",
    "refusals",
    "study_data",
    "study_folds",
    "study_metrics",
    "study_splits",
    "study_targets",
    "tables",
]
collect_ignore = [] if BACKEND == "torch" else [f"test_{name}.py" for name in _ONCE]
if BACKEND == "tensorflow":
    collect_ignore += ["test_study.py", "test_suites.py"]
if BACKEND != "jax":
    collect_ignore += ["test_cli.py", "test_page.py", "test_reliability.py", "test_vectorized.py"]

# A compiler takes seconds for each variant of a formula. PyTorch, which compiles nothing, runs every slow test; JAX runs those
# of training and of studies, and TensorFlow, which traces for longest, those of training.
_SLOW_TESTS = {
    "jax": {
        "callbacks", "cli", "compatibility", "conformance", "distribution", "documentation", "endurance", "engines",
        "gradient_measures", "ivon", "keras_callbacks", "own_data", "page", "reliability", "sampling", "sparsity", "study",
        "study_models", "trainable_losses", "trainer", "trainer_equals_fit", "variational_weight_noise", "vectorized",
    },
    "tensorflow": {"compatibility", "conformance", "distribution", "trainer_equals_fit"},
}  # fmt: skip


def pytest_collection_modifyitems(items):
    gc.freeze()
    if BACKEND in _SLOW_TESTS:
        files = {f"test_{name}.py" for name in _SLOW_TESTS[BACKEND]}
        items[:] = [item for item in items if item.path.name in files or item.get_closest_marker("slow") is None]


@pytest.fixture(autouse=True)
def _seeds():
    import keras

    # Without its garbage collection, half a second of each test.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(7)


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def float64():
    """Double precision, for finite differences."""
    import keras

    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    precision = contextlib.nullcontext()
    if BACKEND == "jax":
        import jax

        # Older versions of JAX have it elsewhere.
        precision = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64(True)
    with precision:
        yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)
