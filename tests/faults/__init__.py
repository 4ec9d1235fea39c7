"""For each suite a part that is sound, and for each of its tests one that is not: what third parties get wrong."""

import random


def with_part(suite, part):
    """The suite, of another part."""
    return type(f"Of{part.__name__}", (suite,), {"part": part})


def unrepeatable():
    """A factor that no seed brings back; in single precision two are equal once in 2^23 times."""
    return random.SystemRandom().uniform(1.0, 2.0)
