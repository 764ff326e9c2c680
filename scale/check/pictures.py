"""Pictures for checks: any number of different ones, drawn and written with nothing but Python.

    python pictures.py FOLDER --count 2000

has them in all forms that an offline job reads: a third as files, a third in parquet files (which takes pyarrow), a third
in webdataset shards. Their rows have the numbers from 0 on for ids, or for names.
"""

import argparse
import io
import pathlib
import random
import struct
import tarfile
import zlib

SIDE = 96


def png(seed):
    """A PNG with three shapes on white; another for every seed, the same for the same."""
    chance = random.Random(seed)
    rows = [bytearray(b"\xff" * 3 * SIDE) for _ in range(SIDE)]
    for _ in range(3):
        x, y, half = (chance.randrange(low, high) for low, high in ((16, 80), (16, 80), (6, 14)))
        color, round_ = bytes(chance.randrange(200) for _ in range(3)), chance.random() < 0.5
        for i in range(y - half, y + half):
            for j in range(x - half, x + half):
                if not round_ or (i - y) ** 2 + (j - x) ** 2 < half**2:
                    rows[i][3 * j : 3 * j + 3] = color
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")))


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_files(folder, numbers):
    (folder / "files").mkdir()
    for number in numbers:
        (folder / "files" / f"{number:06}.png").write_bytes(png(number))


def write_parquet(path, numbers):
    import pyarrow
    import pyarrow.parquet

    rows = [{"id": f"{number:06}", "image": png(number)} for number in numbers]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_shard(path, numbers):
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            data = png(number)
            member = tarfile.TarInfo(f"{number:06}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--shard", type=int, default=64, help="pictures in a shard")
    args = parser.parse_args()

    args.folder.mkdir(parents=True)
    third = args.count // 3
    write_files(args.folder, range(third))
    shards = ((write_parquet, "parquet", third, 2 * third), (write_shard, "tar", 2 * third, args.count))
    for write, kind, first, last in shards:
        for start in range(first, last, args.shard):
            write(args.folder / f"shard-{start:06}.{kind}", range(start, min(start + args.shard, last)))


if __name__ == "__main__":
    main()
