"""Run the studies of docs/studies/README.md on JAX, and write their verdicts into its table (needs the extra tune).

    python docs/studies.py FOLDER [NAME ...]

FOLDER holds concrete.npz and energy.npz with arrays X and y: UCI's Concrete Compressive Strength and Energy Efficiency
(heating load). The pages of the studies are written to build/studies/NAME/index.html.
"""

import json
import os
import re
import subprocess
import sys
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
PROJECT = Path(__file__).parent.parent
TABLE = PROJECT / "docs" / "studies" / "README.md"


def verdict_of(name, npz):
    """Run a study, and return its verdict."""
    folder = PROJECT / "build" / "studies" / name
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [*STUDIES[name], "--tune", str(TRIALS)]
    if arguments[0].endswith(".npz"):
        with np.load(npz / arguments[0]) as arrays:
            np.savez(folder / arguments[0], X=arrays["X"], y=arrays["y"])
    command = [sys.executable, "-m", "minimand.cli", "study", *arguments, "--out", ".", "--json"]
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    printed = subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed)["verdict"]


def main(npz, names):
    for name in names:
        line = f"| {name} | {verdict_of(name, npz)} |"
        text = re.sub(rf"^\| {name} \| .*$", lambda _, line=line: line, TABLE.read_text(), flags=re.MULTILINE)
        TABLE.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or STUDIES)
