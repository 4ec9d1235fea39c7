"""The page of a study, in a browser as readers have it."""

import contextlib
import dataclasses
import math
import re
import shutil

import keras
import numpy as np
import polars as pl
import pytest
from PIL import Image

from minimand.study import (
    Candidate,
    LocalEngine,
    Part,
    Results,
    Study,
    Tuning,
    load_data,
    load_results,
    mlp,
    write_page,
)
from minimand.study._page import _left_out
from tests.small_networks import one_layer

# A browser opens the page of a study.
pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync", "--no-sandbox")
CANDIDATES = (
    Candidate("baseline", "as usual"),
    Candidate("robust", "learns its shape", loss=Part("AdaptiveRobust")),
    Candidate("noise", "of <weights>", transforms=(Part("WeightNoise", {"stddev": 0.1}),)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    arguments = {"seeds": 3, "epochs": 2, "engine": LocalEngine(), "tuning": Tuning(3, splits=1)}
    study = Study(one_layer, "iris", candidates=CANDIDATES, folder=folder, **arguments)
    write_page(study.run(command="minimand study iris"), folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, folder):
    """The page of a study; whatever the browser complains of, or would fetch, fails the test."""
    complaints = []
    page = browser.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith("file:") else None)
    page.goto((folder / "index.html").as_uri())
    yield page
    page.close()
    assert [text for text in complaints if not text.startswith("data:")] == []


@pytest.fixture
def page(browser, folder):
    with opened(browser, folder) as page:
        yield page


def column(page, index):
    return page.locator(f"table.sortable tbody tr td:nth-child({index + 1})").evaluate_all(
        "cells => cells.map(cell => cell.dataset.value)"
    )


def test_the_table_sorts_by_each_column_both_ways(page):
    heads = page.locator("table.sortable th")
    assert heads.count() == 8
    for index in range(heads.count()):
        button = heads.nth(index).locator("button")
        for direction in ("ascending", "descending"):
            # With the keyboard.
            button.focus()
            page.keyboard.press("Enter")
            assert heads.nth(index).get_attribute("aria-sort") == direction
            assert page.locator("[aria-sort]").count() == 1
            values = column(page, index)
            if index:
                values = [float(value) for value in values]
                numbers = [value for value in values if not math.isnan(value)]
                # What has no number is last either way.
                assert all(math.isnan(value) for value in values[len(numbers) :])
                values = numbers
            assert values == sorted(values, reverse=direction == "descending")
        assert sorted(column(page, 0)) == ["baseline", "noise", "robust"]


def test_every_figure_has_words_and_no_name_twice(page):
    figures = page.locator("figure")
    # Three of all candidates, two of each.
    assert figures.count() == page.locator("figure > svg").count() == 3 + 2 * 3
    for index in range(figures.count()):
        assert figures.nth(index).get_attribute("role") == "img"
        assert len(figures.nth(index).get_attribute("aria-label")) > 40
    ids = page.evaluate("[...document.querySelectorAll('svg g[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read_in_light_and_dark(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    # Wide things scroll by themselves.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in (".verdict", "table.sortable td", ".soft", "figure svg text", "summary"):
        assert contrast(page, selector) >= 4.5


def contrast(page, selector):
    """WCAG 2's ratio of luminances, of text over the page's ground."""
    element = page.locator(selector).first
    colours = element.evaluate(
        "e => [getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color'], getComputedStyle(document.body).backgroundColor]"
    )

    def luminance(colour):
        channels = [float(number) / 255 for number in re.findall(r"[\d.]+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted(map(luminance, colours), reverse=True)
    return (high + 0.05) / (low + 0.05)


def flat(input_shape, outputs):
    layers = [keras.layers.Flatten(), keras.layers.Dense(outputs, "softmax")]
    return keras.Sequential([keras.Input(input_shape), *layers])


@pytest.fixture(params=["images", "texts"])
def other_folder(request, tmp_path):
    """The study of a folder of images, or of a table with texts."""
    random = np.random.default_rng(0)
    if request.param == "images":
        for index in range(30):
            path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype("uint8")).save(path)
        data = load_data(tmp_path / "photos")
    else:
        texts = [" ".join(random.choice(["good", "bad", "film", "plot", "actor"], 6)) for _ in range(60)]
        pl.DataFrame({"text": texts, "y": ["yes", "no"] * 30}).write_csv(tmp_path / "reviews.csv")
        data = load_data(tmp_path / "reviews.csv", target="y")
    arguments = {"candidates": ["weight-noise"], "seeds": 2, "epochs": 1, "engine": "local"}
    study = Study(flat, data, folder=tmp_path / "study", **arguments)
    write_page(study.run(command=f"minimand study {data.name}"), tmp_path / "study")
    return request.param, tmp_path / "study"


def test_studies_of_images_and_texts_have_pages(browser, other_folder):
    kind, folder = other_folder
    with opened(browser, folder) as page:
        text = page.inner_text("body")
        assert {"images": "30 rows, 8 x 8 x 3", "texts": "60 rows"}[kind] in text
        # Trees are a reference for tables.
        assert ("gradient boosting" in text) == (kind == "texts")
        page.set_viewport_size({"width": 360, "height": 800})
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_printed_all_details_are_open(page):
    assert page.locator("details[open]").count() == 0
    assert page.pdf()[:4] == b"%PDF"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    # One for each candidate, and the columns.
    assert page.locator("details[open]").count() == 4


def test_it_has_what_was_searched_and_chosen(folder):
    html = (folder / "index.html").read_text()
    results = load_results(folder)
    for name, tuned in results.tuning.items():
        for path in tuned["ranges"]:
            assert f"<code>{path}</code>" in html
            assert f"<td>{tuned['trials'][tuned['chosen']]['numbers'][path]:g}</td>" in html
        assert results.figure("sensitivity", name).startswith("<svg")
    assert "of &lt;weights&gt;" in html
    assert "3 trials for each candidate" in html


def test_what_was_left_out_is_told(folder):
    results = load_results(folder)
    # Two rows of iris are equal.
    (equal,) = _left_out(results)
    assert equal.startswith("1 of 30 test rows of the first split")
    runs = [
        dataclasses.replace(run, status="diverged") if (run.candidate, run.seed) == ("noise", 2) else run
        for run in results.runs
    ]
    description = dict(results.description)
    trials = [{"numbers": trial["numbers"], "score": score} for trial, score in zip(
        results.tuning["robust"]["trials"], (math.inf, None, math.inf), strict=True)]  # fmt: skip
    description["tuning"] = {**results.tuning, "robust": {**results.tuning["robust"], "trials": trials, "chosen": None}}
    description["data"] = {**results.data, "notes": ["left out: the constant column 'a'"]}
    told = _left_out(Results(description, runs))
    assert told[0] == "left out: the constant column 'a'"
    words = ("robust: 2 of 3 trials diverged", "robust: 1 of 3 trials ended early", "robust: no trial", "(seeds 2)")
    for each in words:
        assert sum(each in line for line in told) == 1
    assert len(told) == 5


def test_exact_zeros_are_told(tmp_path):
    """As many as the network has at its best epoch, whichever way it was trained."""
    proximal = Part("Proximal", {"optimizer": Part("SGD", {"learning_rate": 0.1}),
                                 "regularizer": Part("L1", {"l1": 0.05})})  # fmt: skip
    candidates = (Candidate("baseline"), Candidate("sparse", optimizer=proximal))
    study = Study(mlp, "iris", candidates=candidates, seeds=2, epochs=4, folder=tmp_path, engine=LocalEngine())
    runs = study.run().runs
    zeros = {run.candidate: run.zeros for run in runs}
    assert zeros["baseline"] < 0.05 < zeros["sparse"] < 1.0
    html = write_page(study.results, tmp_path).read_text()
    assert f"{100 * sum(run.zeros for run in runs[2:]) / 2:.3g} % of the weights are exactly zero" in html
    if keras.backend.backend() == "jax":
        from minimand.study._training import Work, train_in_a_loop

        for run in train_in_a_loop(study.problem, Work(candidates[1], (0, 1)), lambda name, epochs: None):
            assert run.zeros == pytest.approx(runs[2 + run.seed].zeros, abs=0.01)
