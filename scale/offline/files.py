"""An offline job's work and results, in files.

What goes in is a folder of pictures, of parquet files or of webdataset shards (tar), or all of them; what comes out is a
folder of files with a line of JSON for each answer. The unit of work is a file: a shard, or some pictures together. Its
results appear under its name at once, when all are there, so a job that is started again does what is missing and
nothing twice, whatever happened to it.

- Pictures: a row each, whose `id` is the path within the folder.
- Parquet: a row each, with the columns `image` (an encoded file, or a struct with `bytes` in it) and, if there, `id`.
- Webdataset: a row for each sample with a picture; its `id` is the sample's key. A `.json` beside it may say what to ask.

A row that has a `skill` is asked that, with its `question`, `object`, `length`, `reasoning` and `settings`; all others are
asked what the job asks.
"""

import hashlib
import json
import os
import pathlib
import tarfile

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# What a row may say of a request.
ASKED = ("skill", "question", "object", "length", "reasoning", "settings")


def units(source, out, together=64):
    """What is not done yet: [{"name", "kind", "paths"}], with `together` pictures in one unit."""
    source, out = pathlib.Path(source), pathlib.Path(out)
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    done = {path.name for path in out.glob("*.jsonl")}
    todo = []
    for path in files:
        name = str(path).replace(os.sep, "__")
        if path.suffix in (".parquet", ".tar") and f"{name}.jsonl" not in done:
            todo.append({"name": name, "kind": path.suffix[1:], "paths": [str(path)]})
    # Pictures are looked at one by one: some may have come to the folder since.
    answered = {result["id"] for path in out.glob("pictures-*.jsonl") for result in results(path)}
    left = [str(path) for path in files if path.suffix.lower() in PICTURES and str(path) not in answered]
    for first in range(0, len(left), together):
        some = left[first : first + together]
        name = "pictures-" + hashlib.sha256("\n".join(some).encode()).hexdigest()[:16]
        todo.append({"name": name, "kind": "pictures", "paths": some})
    return todo


def rows(unit, source):
    """A unit's rows: {"id", "image" (bytes), and what it says to ask}."""
    read = {"pictures": _picture, "parquet": _parquet, "tar": _samples}[unit["kind"]]
    for path in unit["paths"]:
        yield from read(pathlib.Path(source), path)


def _picture(source, path):
    yield {"id": path, "image": (source / path).read_bytes()}


def _parquet(source, path):
    import pyarrow.parquet

    number = 0
    for batch in pyarrow.parquet.ParquetFile(source / path).iter_batches(batch_size=256):
        for row in batch.to_pylist():
            image = row["image"]
            row["image"] = image["bytes"] if isinstance(image, dict) else image
            yield {"id": number, **row}
            number += 1


def _samples(source, path):
    """The members of a sample stand together and have the same name up to the first dot of its last part."""
    key, sample = None, {}
    with tarfile.open(source / path) as tar:
        for member in tar:
            if not member.isfile():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, kind = name.partition(".")
            if (folder, stem) != key:
                yield from [sample] if "image" in sample else []
                key, sample = (folder, stem), {"id": f"{folder}/{stem}" if folder else stem}
            data = tar.extractfile(member).read()
            if f".{kind.lower()}" in PICTURES:
                sample["image"] = data
            elif kind == "json":
                said = json.loads(data)
                sample.update({name: said[name] for name in ASKED if name in said})
    yield from [sample] if "image" in sample else []


def grouped(rows):
    """[(picture, [row without it])]: rows about the same picture together, in the order of their first."""
    groups = {}
    for row in rows:
        rest = {name: value for name, value in row.items() if name != "image"}
        groups.setdefault(hashlib.sha256(row["image"]).digest(), (row["image"], []))[1].append(rest)
    return list(groups.values())


def asked(row, asks):
    """What is asked of a row: its own, or what the job asks."""
    own = {name: row[name] for name in ASKED if row.get(name) is not None}
    return [own] if "skill" in own else asks


def write(lines, out, name):
    """Writes all results of a unit, or none. Two workers that write the same unit write the same."""
    folder = pathlib.Path(out)
    part = folder / f".{name}.{os.getpid()}"
    with open(part, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / f"{name}.jsonl")


def results(path):
    """The results in a file."""
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)
