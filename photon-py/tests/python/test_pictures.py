"""A picture is the same picture in whatever form it comes."""

import io
import pickle

import pytest
from conftest import PICTURE

import photon

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

QUESTION = "What color is the star?"


def rgb():
    return Image.open(PICTURE).convert("RGB")


FORMS = {
    "path": lambda: PICTURE,
    "text": lambda: str(PICTURE),
    "bytes": lambda: PICTURE.read_bytes(),
    "bytearray": lambda: bytearray(PICTURE.read_bytes()),
    "memoryview": lambda: memoryview(PICTURE.read_bytes()),
    "file": lambda: io.BytesIO(PICTURE.read_bytes()),
    "pil": lambda: Image.open(PICTURE),
    "pil with a palette": lambda: rgb().quantize(64),
    "array": lambda: np.asarray(rgb()),
    "array with alpha": lambda: np.asarray(rgb().convert("RGBA")),
    "array read backwards": lambda: np.asarray(rgb())[::-1][::-1],
    "array in Fortran's order": lambda: np.asfortranarray(np.asarray(rgb())),
    "encoded": lambda: photon.vl().encode_image(PICTURE),
    "data uri": lambda: photon.vl().encode_image(PICTURE).image_url,
    "what other clients encode": lambda: type("Encoded", (), {"image_url": photon.vl().encode_image(PICTURE).image_url})(),
    "list": lambda: [PICTURE],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(model, form):
    assert model.query(FORMS[form](), QUESTION)["answer"] == "Blue"


def test_pixels_of_a_file_and_of_an_array_are_the_same(model):
    settings = {"temperature": 0}
    by_path = model.detect(PICTURE, "circle", settings)
    for pixels in [rgb(), np.asarray(rgb()), np.asarray(rgb().convert("RGBA"))]:
        assert model.detect(pixels, "circle", settings) == by_path


def test_gray_is_gray(model):
    gray = rgb().convert("L")
    settings = {"temperature": 0}
    answers = [
        model.detect(form, "circle", settings)
        for form in [gray, np.asarray(gray), np.asarray(gray)[:, :, None], gray.convert("RGB")]
    ]
    assert answers.count(answers[0]) == len(answers)


def test_pictures_with_an_array_of_their_own(model):
    class Tensor:
        def __array__(self):
            return np.asarray(rgb())

    assert model.query(Tensor(), QUESTION)["answer"] == "Blue"


def test_what_is_no_picture_is_said(model):
    for wrong in [3, object(), {"a": 1}]:
        with pytest.raises(TypeError, match="is no picture"):
            model.caption(wrong)
    with pytest.raises(photon.errors.ImageTypeError, match=r"shape \[3, 4, 5\]"):
        model.caption(np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(photon.errors.ImageTypeError, match="uint8"):
        model.caption(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(photon.errors.ImageError, match="opens no connections"):
        model.caption("https://example.com/cat.jpg")
    with pytest.raises(ValueError):
        model.caption(b"no picture at all")
    with pytest.raises(FileNotFoundError) as missing:
        model.caption("no/such.png")
    assert missing.value.filename == "no/such.png"
    with pytest.raises(photon.errors.InvalidRequestError, match="needs an image"):
        model.caption(None)


def test_an_encoded_image_is_looked_at_once(model):
    other = Image.effect_noise((200, 160), 80)
    image = model.encode_image(other)
    assert (image.size, image.width, image.height) == ((200, 160), 200, 160)
    asked = model.query(image, QUESTION)
    assert asked.metrics["cached_tokens"] > 60 and asked.metrics["vision_time_ms"] == 0
    again = pickle.loads(pickle.dumps(image))
    assert again.size == image.size and repr(again) == "<photon.EncodedImage 200x160>"
    assert model.query(again, QUESTION).metrics["vision_time_ms"] == 0
    decoded = Image.open(io.BytesIO(__import__("base64").b64decode(image.image_url.split(",")[1])))
    assert decoded.tobytes() == other.convert("RGB").tobytes()


def test_the_key_to_route_by(tmp_path):
    import hashlib

    data = PICTURE.read_bytes()
    key = hashlib.sha256(data).hexdigest()[:32]
    assert photon.route_key(data) == photon.route_key(PICTURE) == key
    assert photon.route_key(text=" hello ") == hashlib.sha256(b"hello").hexdigest()[:32]
    with pytest.raises(TypeError):
        photon.route_key(rgb())
    with pytest.raises(FileNotFoundError):
        photon.route_key(tmp_path / "nothing.png")
