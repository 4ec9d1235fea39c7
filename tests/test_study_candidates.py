"""Candidates of a study: default ones, and those of files."""

import re

import keras
import pytest

import minimand
from minimand.study import Part, StudyError, default_candidates, read_candidates
from minimand.study._candidates import choose
from tests.helpers import told

USUAL = Part("MeanSquaredError")


def test_default_candidates_build_and_print_as_code_that_builds_the_same():
    for candidate in default_candidates():
        for part in (candidate.loss_for(USUAL), *candidate.transforms, candidate.optimizer):
            built = part.build()
            evaluated = eval(part.code(), {"keras": keras, "minimand": minimand})
            assert type(evaluated) is type(built)


def test_candidates_from_toml(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        '[candidates.strong]\nsummary = "s"\ntransforms = [{type = "WeightNoise", stddev = 0.5}, '
        '{type = "WeightPenalty", regularizer = {type = "L2", l2 = 0.1}}]\nloss = "Huber"\n'
        'loss_learning_rate = 0.1\nsearch = {"transforms.0.stddev" = [0.1, 1]}\noptional = true\n'
    )
    (candidate,) = read_candidates(path)
    assert candidate.search == {"transforms.0.stddev": [0.1, 1]}
    assert candidate.optional
    assert "loss_learning_rate=0.1," in candidate.code(USUAL)
    assert candidate.code(USUAL).count("keras.losses.Huber()") == 1
    assert "minimand.transforms.WeightPenalty(regularizer=keras.regularizers.L2(l2=0.1))" in candidate.code(
        "regression"
    )
    assert [c.name for c in choose(["strong"], [candidate])] == ["baseline", "strong"]


OBJECTS = [
    (lambda: keras.losses.Huber(0.5), "keras.losses.Huber(delta=0.5)"),
    (lambda: keras.losses.CosineSimilarity(axis=0), "keras.losses.CosineSimilarity(axis=0)"),
    (lambda: keras.losses.MeanSquaredError(), "keras.losses.MeanSquaredError()"),
    (lambda: minimand.losses.GeneralRobust(1.5, 2.0), "minimand.losses.GeneralRobust(alpha=1.5, scale=2.0)"),
    (lambda: keras.optimizers.Adam(0.002), "keras.optimizers.Adam(learning_rate=0.002)"),
    (
        lambda: minimand.optimizers.SNRScaling(keras.optimizers.SGD(0.1, momentum=0.9), beta=0.5),
        "minimand.optimizers.SNRScaling(optimizer=keras.optimizers.SGD(learning_rate=0.1, momentum=0.9), beta=0.5)",
    ),
    (
        lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)),
        "keras.optimizers.SGD(learning_rate=keras.optimizers.schedules.CosineDecay("
        "initial_learning_rate=0.1, decay_steps=10))",
    ),
    (
        lambda: minimand.transforms.WeightPenalty(keras.regularizers.L2(0.5)),
        "minimand.transforms.WeightPenalty(regularizer=keras.regularizers.L2(l2=0.5))",
    ),
]


@pytest.mark.parametrize(("make", "code"), OBJECTS, ids=[code for _, code in OBJECTS])
def test_objects_become_parts_that_build_the_same(make, code, random):
    made = make()
    part = Part.of(made)
    evaluated = eval(part.code(), {"keras": keras, "minimand": minimand})
    assert {type(each) for each in (part.build(), evaluated)} == {type(made)}
    assert part.code() == Part.of(evaluated).code() == code
    for each in (part.build(), evaluated):
        # But for the names of optimizers, which Keras numbers.
        configs = [re.sub(r"'name': '\w+'", "", repr(one.get_config())) for one in (each, made)]
        assert configs[0] == configs[1]
    if isinstance(made, keras.losses.Loss):
        y, predicted = random.normal(size=(2, 8, 3)).astype("float32")
        assert float(part.build()(y, predicted)) == float(made(y, predicted))
    assert Part.from_dict(part.to_dict()) == part


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[candidates", ["not valid TOML"]),
        ("a = 1", ["no candidates"]),
        ("[candidates.x]\nlos = 'Huber'", ["'los'", "Did you mean 'loss'"]),
        ("[candidates.x]\nloss = 'Hubr'", ["'Hubr'", "Did you mean 'Huber'"]),
        ("[candidates.x]\nloss = {delta = 1}", ["`type`"]),
        ("[candidates.x]\ntransforms = [{type = 'WeightNoise', stddev = -1}]", ["WeightNoise", "stddev"]),
        ("[candidates.x]\ntransforms = 'WeightNoise'", ["list"]),
        ("[candidates.x]\nsearch = [0.1, 1]", ["`search`", "table"]),
        ("[candidates.x]\noptional = 1", ["`optional`", "true or false", "Received: 1"]),
        ("[candidates.'a/b']\nloss = 'Huber'", ["letters"]),
    ],
)
def test_bad_candidates_are_told(text, words, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with told(StudyError, words):
        read_candidates(path)


def test_a_file_of_candidates_that_cannot_be_opened_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "none.toml"):
        with told(StudyError, [str(path), "cannot be read"]):
            read_candidates(path)


def test_unknown_candidate_tells_the_nearest():
    with pytest.raises(StudyError, match="Did you mean 'weight-noise'"):
        choose(["weight-nose"], default_candidates())


def test_the_baseline_alone_is_refused():
    with pytest.raises(StudyError, match="besides the baseline"):
        choose(["baseline"], default_candidates())
