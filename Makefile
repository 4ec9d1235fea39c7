# make: run the main job. For the other targets, see CONTRIBUTING.md.
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --no-compile --quiet
BACKENDS ?= jax
BENCH ?= step_time
# Tests start processes by the hundred, each of which would compile again all that it imports.
export PYTHONDONTWRITEBYTECODE :=

study: .venv/.jax
	.venv/bin/minimand study diabetes

# torch's plain PyPI wheel brings several GB of CUDA; this version is a CPU build where such wheels are at hand.
TORCH ?= torch==2.13.0
install_jax := -e '.[jax,tune]'
install_dev := -e '.[dev]'
install_tensorflow := -e '.[tensorflow]'
install_docs := -e '.[docs]'
install_torch := '$(TORCH)' -e '.[torch]'

$(VENV)/bin/python:
	python3 -m venv $(VENV)

# One stamp a backend; editable, so that only a change of the requirements installs again.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(install_$*)
	touch $@

# All of them in one call, which takes less time than one after another.
ALL := jax dev docs tensorflow torch
install: | .venv/bin/python
	$(PIP) $(foreach each,$(ALL),$(install_$(each)))
	touch $(ALL:%=.venv/.%)

# The tests without those marked slow: five minutes on two cores. `make test-all` runs the slow ones too.
test: SELECT := -m "not slow"
test test-all: $(VENV)/.dev $(foreach backend,jax $(BACKENDS),$(VENV)/.$(backend))
	@for backend in $(BACKENDS); do echo "== $$backend"; KERAS_BACKEND=$$backend TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/python -m pytest -n 2 --dist worksteal $(SELECT) || exit 1; done

# The oldest versions that the package supports, in an environment of their own.
test-oldest:
	PIP_CONSTRAINT=tests/oldest.txt $(MAKE) test VENV=.venv-oldest BACKENDS="jax tensorflow torch"

check: .venv/.jax .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: $(foreach backend,jax $(BACKENDS),.venv/.$(backend))
	@for backend in $(BACKENDS); do KERAS_BACKEND=$$backend TF_CPP_MIN_LOG_LEVEL=3 .venv/bin/python benchmarks/$(BENCH).py || exit 1; done

# The site is in site/ and opens from the file system. No page may load anything from elsewhere.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
	@! grep -rlE '<(script|link)[^>]* (src|href)="https?:' site --include='*.html'

figures: .venv/.jax
	@for page in docs/*_figures.py; do .venv/bin/python $$page || exit 1; done

# The picture of the README: the page of a study, in the browser CHROMIUM or that of `playwright install chromium`.
picture: .venv/.jax .venv/.dev
	.venv/bin/python docs/picture.py

# The scripts are edited, and the notebooks are made from them.
KERNEL := {"jupytext": null, "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
notebooks: .venv/.docs
	@mkdir -p examples/notebooks
	@for example in examples/*.py; do .venv/bin/jupytext --quiet --to ipynb --update --update-metadata '$(KERNEL)' \
		--output examples/notebooks/$$(basename $$example .py).ipynb $$example || exit 1; done

.PHONY: install study test test-all test-oldest check bench docs figures picture notebooks
