"""What each transform does with each kind of layer and of loss, tried: `python -m docs.compatibility`.

Each backend's outcomes go into docs/compatibility.json, and those of all into the table of docs/compatibility.md.
"""

import json
import re
from pathlib import Path

import minimand
from tests import kinds
from tests.parts import TRANSFORMS

FOLDER = Path(__file__).parent
STORED, PAGE = FOLDER / "compatibility.json", FOLDER / "compatibility.md"
HEAD = """# What works with what

Each transform with each kind of layer and of loss, on {backends}: {count} combinations, tried by
`docs/compatibility.py`. "yes": the objective and all gradients are finite, no weight loses its gradient, and the
transform changes the objective (or, of one that only measures, does not). A number: it is refused, with the sentence
below. There is nothing in between: what would be ignored in silence is an error.

The losses are {losses}; a row is
the same for all of them, and for all backends.
"""


def name_of(transform):
    """The class, with what tells entries of the same class apart."""
    part = TRANSFORMS[transform].make()
    apart = {k: v for k, v in part.get_config().items() if k in ("estimator", "per", "draws", "adaptive") and v}
    told = [v if isinstance(v, str) else k for k, v in apart.items() if v not in ("batch", "independent")]
    if type(part.get_config().get("prior")) is dict:
        told.append("scale mixture")
    return f"`{type(part).__name__}`" + (f" ({', '.join(told)})" if told else "")


def only(found, what):
    if len(set(found)) > 1:
        raise SystemExit(f"{what}: outcomes differ: {set(found)}")
    return found[0]


def sentence(outcome):
    """What Keras's wrapping of an error in a layer leaves, without its arguments."""
    outcome = re.sub(r"\x1b\[\d+m", "", outcome)
    return re.sub(r"^Exception encountered when calling .*?\n\n(.*?)\n\nArguments.*", r"\1", outcome, flags=re.DOTALL)


def tried(transform, kind):
    return only([sentence(kinds.outcome(transform, loss, kind)) for loss in kinds.LOSSES], f"{transform}, {kind}")


def table(stored):
    notes, rows = [], []
    for kind in kinds.KINDS:
        cells = []
        for transform in TRANSFORMS:
            found = only([of_backend[transform][kind] for of_backend in stored.values()], f"{transform}, {kind}")
            if found != "works" and found not in notes:
                notes.append(found)
            cells.append("yes" if found == "works" else str(notes.index(found) + 1))
        rows.append(f"| {kind} | {' | '.join(cells)} |")
    names = [name_of(transform) for transform in TRANSFORMS]
    head = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    listed = [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join([*head, *rows, "", *listed, ""])


if __name__ == "__main__":
    found = {transform: {kind: tried(transform, kind) for kind in kinds.KINDS} for transform in TRANSFORMS}
    # Read late: another backend may have finished in the meantime.
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    stored[minimand.backend.name] = found
    STORED.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    count = len(stored) * len(TRANSFORMS) * len(kinds.KINDS) * len(kinds.LOSSES)
    backends = ", ".join(sorted(stored))
    PAGE.write_text(f"{HEAD.format(count=count, losses=', '.join(kinds.LOSSES), backends=backends)}\n{table(stored)}")
