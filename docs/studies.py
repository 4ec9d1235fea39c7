"""Makes the pages in docs/studies/, on JAX: `python docs/studies.py FOLDER [NAME ...]` (needs the extra tune).

FOLDER holds concrete.npz and energy.npz, with arrays X and y: UCI's Concrete Compressive Strength and Energy Efficiency
(heating load).
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
    "diabetes": ["diabetes"],
    "breast_cancer": ["breast_cancer"],
    "digits": ["digits"],
    "iris": ["iris"],
    "wine": ["wine"],
    "concrete": ["concrete.npz", *FILE],
    "energy": ["energy.npz", *FILE],
    "concrete-wrong-targets": ["concrete.npz", *FILE, "--corrupt-targets", "0.2"],
    "digits-wrong-targets": ["digits", "--corrupt-targets", "0.2"],
}
TRIALS = 20
PAGES = Path(__file__).parent / "studies"


def studied(name, npz, folder):
    """Its command, and what it prints as JSON; the page is in the folder then."""
    arguments = [*STUDIES[name], "--tune", str(TRIALS)]
    if arguments[0].endswith(".npz"):
        with np.load(npz / arguments[0]) as arrays:
            np.savez(folder / arguments[0], X=arrays["X"], y=arrays["y"])
    command = [sys.executable, "-m", "minimand.cli", "study", *arguments, "--json"]
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    printed = subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True).stdout
    return " ".join(["minimand", "study", *arguments]), json.loads(printed)


def main(npz, names):
    PAGES.mkdir(exist_ok=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            command, found = studied(name, npz, Path(folder))
            (PAGES / f"{name}.html").write_text((Path(folder) / found["report"]).read_text())
        (PAGES / f"{name}.json").write_text(json.dumps({"command": command, **found}, indent=2) + "\n")
    write_overview()


def write_overview():
    lines = [
        "# Nine studies",
        "",
        "The default candidates on five built-in and two UCI data sets, and on two of them with a fifth of the",
        f"training targets wrong: {TRIALS} trials of hyperparameters for each candidate, then ten splits. Each page is",
        "one file that a browser opens. `python docs/studies.py` makes them.",
        "",
        "| study | verdict |",
        "|---|---|",
    ]
    for path in sorted(PAGES.glob("*.json")):
        lines.append(f"| [{path.stem}]({path.stem}.html) | {json.loads(path.read_text())['verdict']} |")
    (PAGES / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or STUDIES)
