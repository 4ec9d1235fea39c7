"""Makes the table docs/studies/README.md, on JAX: `python docs/studies.py FOLDER [NAME ...]` (needs the extra tune).

FOLDER holds concrete.npz and energy.npz, with arrays X and y: UCI's Concrete Compressive Strength and Energy Efficiency
(heating load). The pages of the studies are written to FOLDER/NAME.html. With names, only their rows change.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

FILE = ["--target", "y", "--task", "regression"]
STUDIES = {
    "breast_cancer": ["breast_cancer"],
    "concrete-wrong-targets": ["concrete.npz", *FILE, "--corrupt-targets", "0.2"],
    "concrete": ["concrete.npz", *FILE],
    "diabetes": ["diabetes"],
    "digits-wrong-targets": ["digits", "--corrupt-targets", "0.2"],
    "digits": ["digits"],
    "energy": ["energy.npz", *FILE],
    "iris": ["iris"],
    "wine": ["wine"],
}
TRIALS = 20
README = Path(__file__).parent / "studies" / "README.md"


def command_of(name):
    return ["minimand", "study", *STUDIES[name], "--tune", str(TRIALS)]


def verdict_of(name, npz):
    """Run a study, keep its page, and return its verdict."""
    with tempfile.TemporaryDirectory() as folder:
        file = STUDIES[name][0]
        if file.endswith(".npz"):
            with np.load(npz / file) as arrays:
                np.savez(Path(folder) / file, X=arrays["X"], y=arrays["y"])
        command = [sys.executable, "-m", "minimand.cli", *command_of(name)[1:], "--json"]
        environment = os.environ | {"KERAS_BACKEND": "jax"}
        printed = subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        found = json.loads(printed.stdout)
        (npz / f"{name}.html").write_text((Path(folder) / found["report"]).read_text())
    return found["verdict"]


def rows_of(lines):
    """The verdicts of the table by name."""
    cells = [line.strip("| \n").split(" | ") for line in lines if line.startswith("| ") and line.count("|") == 4]
    return {name: verdict for name, _, verdict in cells if name in STUDIES}


def main(npz, names):
    lines = README.read_text().splitlines(keepends=True)
    rows = rows_of(lines)
    for name in names:
        rows[name] = verdict_of(name, npz)
        head = "".join(lines[: lines.index("|---|---|---|\n") + 1])
        table = (f"| {name} | `{' '.join(command_of(name))}` | {rows[name]} |\n" for name in STUDIES if name in rows)
        README.write_text(head + "".join(table))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or STUDIES)
