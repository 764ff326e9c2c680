"""The examples in docstrings, and the programs of the guide."""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import shutil

import pytest
from conftest import ROOT

import photon

MODULES = ["photon"] + [f"photon.{module.name}" for module in pkgutil.iter_modules(photon.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_docstrings_have_examples():
    tried = sum(len(test.examples) for name in MODULES for test in doctest.DocTestFinder().find(importlib.import_module(name)))
    assert tried > 50


def blocks(page):
    """The programs of a page, each with what it prints if the page says so."""
    text = (ROOT / page).read_text()
    return re.findall(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", text, re.DOTALL)


@pytest.mark.parametrize("page", ["docs/src/python.md", "photon-py/README.md", "README.md"])
def test_programs_of_the_guide(page, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "assets", tmp_path / "assets")
    (tmp_path / "photos").mkdir()
    for name in ["photo.png", "photos/a.png", "photos/b.png"]:
        shutil.copy(ROOT / "assets/shapes.png", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    programs, variables = blocks(page), {"__name__": "guide"}
    assert programs
    for program, prints in programs:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(program, page, "exec"), variables)
        if prints:
            assert printed.getvalue().rstrip("\n") == prints.rstrip("\n"), program
