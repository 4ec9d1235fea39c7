"""The table of docs/compatibility.md is what happens: every transform with every kind of model, and losses in turn."""

import json

import keras
import pytest

from docs.compatibility import STORED, sentence
from tests import kinds
from tests.parts import TRANSFORMS

BACKEND = keras.backend.backend()
# Of PyTorch all, which is quick; elsewhere, where each operation is compiled, a few: docs/compatibility.py tries them.
SHARE = 1 if BACKEND == "torch" else 24
LOSSES = list(kinds.LOSSES)
TRIED = [
    (transform, LOSSES[(i + j // 2) % len(LOSSES)], kind)
    for i, transform in enumerate(TRANSFORMS)
    for j, kind in enumerate(kinds.KINDS)
    if (i + j) % SHARE == 0
]


TABLE = json.loads(STORED.read_text())[BACKEND]


@pytest.mark.parametrize(("transform", "loss", "kind"), TRIED)
def test_it_works_or_is_refused_as_the_table_says(transform, loss, kind):
    assert sentence(kinds.outcome(transform, loss, kind)) == TABLE[transform][kind]
