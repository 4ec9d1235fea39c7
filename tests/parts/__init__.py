"""Every part of the library once, with a float64 reference: what the conformance suites and other tests run over.

A new part is one line in one of these modules (and a formula, if it is longer than that).
"""

from tests.parts._part import suite_of
from tests.parts.losses import LOSSES
from tests.parts.optimizers import OPTIMIZERS
from tests.parts.regularizers import REGULARIZERS
from tests.parts.transforms import TRANSFORMS

__all__ = ["LOSSES", "OPTIMIZERS", "REGULARIZERS", "TRANSFORMS", "suite_of"]
