"""The suites find what is wrong: each of their tests passes for what is sound, and fails for a part that is not."""

import unittest

import keras
import pytest

from minimand import testing
from tests.backend_suite import BackendSuite
from tests.faults import backends, losses, optimizers, regularizers, transforms

SUITES = {
    testing.LossSuite: losses,
    testing.RegularizerSuite: regularizers,
    testing.TransformSuite: transforms,
    testing.OptimizerSuite: optimizers,
    BackendSuite: backends,
}
# All others are as fast as they can be on PyTorch, where nothing is compiled.
NEED_A_COMPILER = ("test_compiled_and_eager_training_agree", "test_two_devices_train_as_one")
CASES = [
    (faults, method)
    for faults in SUITES.values()
    for method in faults.FAULTS
    if (method in NEED_A_COMPILER) == (keras.backend.backend() == "jax")
]


def problem(suite, method):
    """What the test raises, if it does."""
    made = suite()
    made.setup_method()
    try:
        getattr(made, method)()
    # Whatever the part runs into.
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(("suite", "faults"), SUITES.items(), ids=lambda each: each.__name__)
def test_every_test_of_a_suite_has_its_fault(suite, faults):
    assert set(faults.FAULTS) == {name for name in dir(suite) if name.startswith("test_")}


@pytest.mark.parametrize(("faults", "method"), CASES, ids=lambda each: getattr(each, "__name__", each).split(".")[-1])
def test_it_passes_for_what_is_sound_and_fails_for_its_fault(faults, method):
    for sound in faults.SOUND:
        found = problem(sound, method)
        assert found is None or isinstance(found, unittest.SkipTest), found
    suite, words = faults.FAULTS[method]
    found = problem(suite, method)
    assert words in str(found)
