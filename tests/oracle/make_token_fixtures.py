"""Write token shards with litdata, and record what litdata reads from them: `tests/data/tokens`.

Run it where litdata is installed (it brings torchvision and cloud clients; it is no dependency of ours, nor of the
tests): `python tests/oracle/make_token_fixtures.py`.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import torch
from litdata.streaming.item_loader import TokensLoader
from litdata.streaming.serializers import _get_serializers
from litdata.streaming.writer import BinaryWriter

FOLDER = Path(__file__).parents[1] / "data/tokens"
ROW = 8


def documents(seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(4, 12) for _ in range(draw.randint(3, 20))] for _ in range(7)]


def rows_as_read(folder: Path) -> list[list[int]]:
    """Rows of `ROW` tokens as litdata's loader gives them."""
    index = json.loads((folder / "index.json").read_text())
    loader = TokensLoader(block_size=ROW)
    loader.setup(index["config"], index["chunks"], _get_serializers(None))
    rows = []
    for number, (_, first, last, _) in enumerate(loader.generate_intervals()):
        file = folder / index["chunks"][number]["filename"]
        for item in range(first, last):
            row = loader.load_item_from_chunk(item, number, str(file), first, file.stat().st_size)
            rows.append(row.tolist())
    return rows


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, dtype in (("litdata_int32", torch.int32), ("litdata_uint16", torch.uint16)):
        folder = FOLDER / name
        folder.mkdir(parents=True)
        docs = documents(len(name))
        writer = BinaryWriter(str(folder), chunk_bytes=150, item_loader=TokensLoader(block_size=ROW))
        for number, doc in enumerate(docs):
            writer.add_item(number, torch.tensor(doc, dtype=dtype))
        writer.done()
        writer.merge()
        expected = {"documents": docs, "row_length": ROW, "rows": rows_as_read(folder)}
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
