"""Training runs in this process: at once where that is possible, one by one where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from minimand import backend
from minimand.study._candidates import Candidate
from minimand.study._loop import train_in_a_loop
from minimand.study._problem import Problem
from minimand.study._run import Run
from minimand.study._vectorized import Traced, VectorizedTraining, at_once, trace

OnEpochs = Callable[[str, int], None]
"""`on_epochs(candidate, n)` is told of n epochs of runs of a candidate as they pass."""


@dataclass(frozen=True)
class Work:
    """Runs of one candidate that are trained together. Always the same ones, for results to be so to the last digit."""

    candidate: Candidate
    seeds: tuple[int, ...]


Train = Callable[[Sequence[Work], OnEpochs], Iterator[list[Run]]]
"""Gives the runs of pieces of work, some at a time as they finish, and tells of epochs as they pass."""


def divided(problem: Problem, candidates: Iterable[Candidate], seeds: Sequence[int]) -> list[Work]:
    """All runs as pieces of work: with as many seeds as can train at once."""
    size = at_once(problem) if backend.many_fits is not None else 1
    parts = [tuple(seeds[first : first + size]) for first in range(0, len(seeds), size)]
    return [Work(candidate, part) for candidate in candidates for part in parts]


def train(problem: Problem, works: Sequence[Work], on_epochs: OnEpochs) -> Iterator[list[Run]]:
    """The runs of these pieces of work, some at a time."""
    if backend.many_fits is None:
        for work in works:
            yield list(train_in_a_loop(problem, work.candidate, work.seeds, on_epochs))
        return
    programs: list[tuple[list[Traced], VectorizedTraining, Future[None]]] = []
    rest: list[tuple[Work, BaseException]] = []
    # Compiled beside the making of the next, which is the interpreter's work. They run when all are compiled: what runs
    # beside a compiler says nothing about how long a candidate takes.
    with ThreadPoolExecutor(max_workers=2) as compilers:
        for alike in _of_one_form(works):
            groups, untraceable = _groups(problem, alike)
            rest += untraceable
            for group in groups:
                try:
                    program = VectorizedTraining(problem, group)
                except Exception as error:
                    rest += [(Work(of.candidate, of.seeds), error) for of in group]
                else:
                    programs.append((group, program, compilers.submit(program.compile)))
    for group, program, compiling in programs:
        failure = compiling.exception()
        if failure is None:
            yield list(program.run(on_epochs))
        else:
            rest += [(Work(of.candidate, of.seeds), failure) for of in group]
    for work, reason in rest:
        words = str(reason).strip() or type(reason).__name__
        note = f"JAX cannot train its seeds at once: {words.splitlines()[0]}"
        yield list(train_in_a_loop(problem, work.candidate, work.seeds, on_epochs, note))


def train_one(problem: Problem, work: Work) -> list[Run]:
    """The runs of a piece of work, for processes elsewhere, which tell of them when they are done."""
    return [run for runs in train(problem, [work], lambda candidate, epochs: None) for run in runs]


def _of_one_form(works: Sequence[Work]) -> list[list[Work]]:
    """The works by what their candidates are but for numbers: only such can share a program."""
    by_form: dict[str, list[Work]] = {}
    for work in works:
        by_form.setdefault(json.dumps(_without_numbers(work.candidate.to_dict())), []).append(work)
    return list(by_form.values())


def _without_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_numbers(part) for key, part in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_without_numbers(part) for part in value]
    return 0 if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _groups(problem: Problem, works: Sequence[Work]) -> tuple[list[list[Traced]], list[tuple[Work, BaseException]]]:
    """Runs that one program can train, and those that none can, with the reason."""
    groups: list[list[Traced]] = []
    rest: list[tuple[Work, BaseException]] = []
    limit = at_once(problem)
    for work in works:
        for seeds in problem.alike(work.seeds):
            try:
                traced = trace(problem, work.candidate, seeds)
            # Whatever a user's network or objective does that JAX cannot trace.
            except Exception as error:
                rest.append((Work(work.candidate, seeds), error))
                continue
            for group in groups:
                small = (len(group) + 1) * len(seeds) <= limit
                if small and group[0].seeds == seeds and backend.many_fits.TracedStep.alike(group[0].step, traced.step):
                    group.append(traced)
                    break
            else:
                groups.append([traced])
    return groups, rest
