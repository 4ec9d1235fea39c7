"""Every transform with every kind of model works, or is refused as docs/compatibility.md says."""

import re

import keras
import pytest

from tests import kinds
from tests.parts import TRANSFORMS

# Each pair of a transform and a kind of model is compiled.
pytestmark = pytest.mark.slow

# On PyTorch all are tried, which is quick; elsewhere, where each is compiled, every 24th.
SHARE = 1 if keras.backend.backend() == "torch" else 24
LOSSES = list(kinds.LOSSES)
TRIED = [
    (transform, LOSSES[(i + j // 2) % len(LOSSES)], kind)
    for i, transform in enumerate(TRANSFORMS)
    for j, kind in enumerate(kinds.KINDS)
    if (i + j) % SHARE == 0
]


def refusal(transform, kind):
    """Words of the refusal, or None where the transform works with this kind of model."""
    if kind == "SpectralNormalization":
        return "a layer that assigns spectral_normalization/dense/kernel"
    options = TRANSFORMS[transform].make().get_config()
    name = type(TRANSFORMS[transform].make()).__name__
    if kind == "BatchNormalization" and (name == "Fishr" or options.get("estimator") in ("probe", "exact")):
        return "['batch_normalization']"
    if kind == "tied weights" and options.get("per") == "example":
        return "layers that are called once in a pass"
    return None


@pytest.mark.parametrize(("transform", "loss", "kind"), TRIED)
def test_it_works_or_is_refused(transform, loss, kind):
    found, expected = kinds.outcome(transform, loss, kind), refusal(transform, kind)
    if expected is None:
        assert found == "works"
    else:
        # Keras puts colours around the name of a layer in which an error is raised.
        assert expected in re.sub(r"\x1b\[\d+m", "", found)
