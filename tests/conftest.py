"""Every test starts from the same seeds and leaves the global settings as they were."""

import contextlib
import os
import sys
from pathlib import Path

# JAX's compiled programs, shared by the workers, the processes that tests start, and later runs. Before JAX is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()
if BACKEND != "tensorflow":
    # Wherever it is installed Keras's `set_random_seed` imports it: half a minute for each worker.
    sys.modules["tensorflow"] = None
# The command starts processes of its own, at several seconds each; what it runs is tested on all backends, and what it
# stores is stored alike, and so is its page. Only JAX maps a step.
collect_ignore = (
    [] if BACKEND == "jax" else ["test_cli.py", "test_page.py", "test_reliability.py", "test_vectorized.py"]
)


@pytest.fixture(autouse=True)
def _seeds():
    # Without its garbage collection, half a second of each test.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(7)


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def float64():
    """Double precision, for finite differences."""
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    precision = contextlib.nullcontext()
    if BACKEND == "jax":
        import jax

        precision = jax.enable_x64(True)
    with precision:
        yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)
