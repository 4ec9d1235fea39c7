"""Every public name is documented, whole; mypy sees to its types."""

import inspect
import re

import pytest

import minimand
from minimand import study, testing

PACKAGES = [
    *(part for name in minimand.__all__ if inspect.ismodule(part := getattr(minimand, name))),
    study,
    testing,
]


def public(package):
    """What `__all__` lists, or a module itself defines."""
    own = [name for name, part in vars(package).items() if getattr(part, "__module__", None) == package.__name__]
    return getattr(package, "__all__", [name for name in own if not name.startswith("_")])


NAMES = {"minimand.Trainer": minimand.Trainer} | {
    f"{package.__name__}.{name}": getattr(package, name) for package in PACKAGES for name in public(package)
}
OBJECTS = {name: part for name, part in NAMES.items() if inspect.isclass(part) or inspect.isfunction(part)}


def arguments(part):
    """Names that a caller gives."""
    parameters = inspect.signature(part).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


@pytest.mark.parametrize("name", OBJECTS)
def test_docstring(name):
    part = OBJECTS[name]
    doc = inspect.cleandoc(part.__doc__)
    first, _, rest = doc.partition("\n")
    assert len(first) <= 120, "one line says what it is"
    assert not rest or rest.startswith("\n"), "one line says what it is"
    assert first.endswith((".", ":"))
    if inspect.isclass(part) and issubclass(part, Exception):
        return
    if not name.startswith(("minimand.study.", "minimand.testing.")) and part is not minimand.transforms.Batch:
        assert re.search(r"^Source: ", doc, re.MULTILINE), "a source"
    assert re.search(r"^Examples:\n(?:.*\n)*? +>>> ", doc, re.MULTILINE), "an example"
    listed = re.search(r"^(?:Args|Attributes):\n((?: +.*\n|\n)*)", doc + "\n", re.MULTILINE)
    named = re.findall(r"^    \*{0,2}([\w, `*]+):", listed.group(1), re.MULTILINE) if listed else []
    named = {n.strip("` *") for group in named for n in group.split(",")}
    assert set(arguments(part)) <= named, "each argument is explained"
    if inspect.isfunction(part):
        assert re.search(r"^(Returns|Yields):", doc, re.MULTILINE), "what it returns"


def documented_methods(part):
    """Public methods and properties that are not Keras's or pytest's own."""
    outside = {
        name for base in inspect.getmro(part) if not base.__module__.startswith("minimand") for name in vars(base)
    }
    for name, member in vars(part).items():
        if (
            not name.startswith(("_", "test_"))
            and name not in outside
            and (callable(member) or isinstance(member, property))
        ):
            yield name


@pytest.mark.parametrize("name", [name for name, part in OBJECTS.items() if inspect.isclass(part)])
def test_methods_are_documented(name):
    part = OBJECTS[name]
    missing = [method for method in documented_methods(part) if not inspect.getdoc(getattr(part, method))]
    assert not missing
