"""Programs written for ``moondream.vl(local=True)``, run with nothing changed but the import.

Each is what the package's documentation shows for a method of its local client, with a picture that is there.
"""

import contextlib
import io
import re

import pytest

pytest.importorskip("PIL")

START = """
import moondream as md
from PIL import Image

model = md.vl(local=True)
image = Image.open("assets/shapes.png")
"""

PROGRAMS = {
    "captions": (
        START
        + """
caption = model.caption(image)["caption"]
print("Caption:", caption)
caption = model.caption(image, length="short")["caption"]
print("Short:", caption)
""",
        r"Caption: .+\nShort: A yellow triangle, a blue star and a red circle\.\n",
    ),
    "a caption in pieces": (
        START
        + """
for chunk in model.caption(image, length="short", stream=True)["caption"]:
    print(chunk, end="", flush=True)
""",
        r"A yellow triangle, a blue star and a red circle\.",
    ),
    "a question": (
        START
        + """
answer = model.query(image, "What color is the star?")["answer"]
print("Answer:", answer)
for chunk in model.query(image, "What color is the circle?", stream=True)["answer"]:
    print(chunk, end="", flush=True)
""",
        r"Answer: Blue\nRed",
    ),
    "a question that is thought about": (
        START
        + """
result = model.query(image=image, question="What color is the star?", reasoning=True, settings={"max_tokens": 16})
print(sorted(result), sorted(result["reasoning"]))
""",
        r"\['answer', 'reasoning'\] \['grounding', 'text'\]\n",
    ),
    "a conversation": (
        START
        + """
chat = model.chat([
    {"role": "user", "content": "My name is Alice."},
    {"role": "assistant", "content": "Nice to meet you, Alice!"},
    {"role": "user", "content": "What is my name?"},
])
print(chat["message"]["role"], type(chat["message"]["content"]).__name__, chat["finish_reason"])
messages = [{"role": "user", "content": "Write a short poem about the moon."}]
for chunk in model.chat(messages, stream=True, settings={"max_tokens": 8})["message"]:
    assert isinstance(chunk, str)
""",
        r"assistant str (stop|length)\n",
    ),
    "boxes": (
        START
        + """
objects = model.detect(image, "circle")["objects"]
for box in objects:
    print(f"{box['x_min']:.1f} {box['y_min']:.1f} {box['x_max']:.1f} {box['y_max']:.1f}")
""",
        r"(0\.\d ){3}0\.\d\n",
    ),
    "points": (
        START
        + """
points = model.point(image, "star", spatial_refs=[[0.5, 0.5]])["points"]
points = model.point(image, "star", settings={"max_objects": 1})["points"]
print(len(points), sorted(points[0]))
""",
        r"1 \['x', 'y'\]\n",
    ),
    "outlines": (
        START.replace("local=True", 'local=True, model="demo3"')
        + """
result = model.segment(image, "star")
print(result["path"][0], sorted(result["bbox"]))
result = model.segment(image, "star", spatial_refs=[[0.5, 0.5]])
for update in model.segment(image, "star", stream=True):
    if "bbox" in update and not update.get("completed"):
        print("box", sorted(update["bbox"]))
    if "chunk" in update:
        assert isinstance(update["chunk"], str)
    if update.get("completed"):
        print("whole", update["path"][0], sorted(update["bbox"]))
""",
        r"M (\['x_max', 'x_min', 'y_max', 'y_min'\])\nbox \1\nwhole M \1\n",
    ),
    "an encoded image": (
        START
        + """
encoded = model.encode_image(image)
print(encoded.image_url[:11], model.query(encoded, "What color is the star?")["answer"])
assert model.encode_image(encoded).size == encoded.size
""",
        r"data:image/ Blue\n",
    ),
    "what the newest version calls it": (
        """
import moondream as md
from PIL import Image

print("demo" in md.photon_models())
with md.photon("demo") as model:
    print(model.model_id, model.supports("caption"), "query" in model.tasks)
    print(model.caption(Image.open("assets/shapes.png"), length="short")["caption"])
""",
        r"True\ndemo True True\nA yellow triangle, .*\n",
    ),
    "options of its engine": (
        """
import moondream as md

model = md.vl(api_key="nobody looks at it", local=True, model="demo", device="cpu", max_batch_size=4)
print(model.query(question="What color is the sky?", settings={"temperature": 0.5, "top_p": 0.9, "max_tokens": 4}).keys())
model.close()
""",
        r"dict_keys\(\['answer'\]\)\n",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_with_the_import_changed(name):
    program, prints = PROGRAMS[name]
    changed = program.replace("import moondream as md", "import photon as md")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(changed, name, "exec"), {})
    assert re.fullmatch(prints, printed.getvalue()), printed.getvalue()


def test_arguments_that_stand_for_nothing_are_said():
    import photon

    with pytest.warns(UserWarning, match="no kv_cache_pages"):
        photon.vl(local=True, kv_cache_pages=4096)


def test_methods_take_what_those_of_the_package_take():
    """Names and order of arguments of ``moondream`` 2.6.1's client."""
    import inspect

    import photon

    theirs = {
        "caption": ["image", "length", "stream", "settings"],
        "query": ["image", "question", "stream", "settings", "reasoning", "spatial_refs"],
        "chat": ["messages", "stream", "settings", "reasoning"],
        "detect": ["image", "object", "settings"],
        "point": ["image", "object", "settings", "spatial_refs"],
        "segment": ["image", "object", "spatial_refs", "stream", "settings"],
        "encode_image": ["image"],
    }
    for name, expected in theirs.items():
        for method in [name, f"a{name}"]:
            parameters = inspect.signature(getattr(photon.Model, method)).parameters.values()
            by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
            assert by_place == ["self", *expected], method
