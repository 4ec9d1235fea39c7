"""Every test starts from the same seeds and leaves the global settings as they were."""

import contextlib

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()


@pytest.fixture(autouse=True)
def _seeds():
    keras.utils.clear_session()
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
