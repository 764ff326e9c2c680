"""What tests share: the demo models, loaded once, and a picture."""

import os
from pathlib import Path

import pytest

import photon

ROOT = Path(__file__).resolve().parents[3]
PICTURE = ROOT / "assets" / "shapes.png"


@pytest.fixture(scope="session", autouse=True)
def at_home():
    """Examples name pictures as seen from the repository."""
    os.chdir(ROOT)


@pytest.fixture(scope="session")
def model():
    return photon.vl()


@pytest.fixture(scope="session")
def experts():
    return photon.vl(model="demo3")


@pytest.fixture
def picture():
    return PICTURE
