"""One COCO file of many."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from samrt.folder.job import read_record
from samrt_engines.errors import InputError


def merge_records(path: Path, records: Iterable[tuple[Path, int | None]]) -> None:
    """Join the COCO files of pictures to one, with ids of its own. Only one picture's masks are in memory at a time.

    records: a picture's file and its id; None is the next number that no picture has
    Raises InputError for a file that is not one, and where the result cannot be written.
    """
    listed = list(records)
    given = {image_id for _, image_id in listed if image_id is not None}
    free = (number for number in count(1) if number not in given)
    images: list[dict[str, Any]] = []
    categories: dict[int, dict[str, Any]] = {}
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write('{"annotations": [')
            written = 0
            for source, image_id in listed:
                record = read_record(source)
                if record is None:
                    raise InputError(f"cannot read {source}", got="no results", fix="run the same job again")
                number = next(free) if image_id is None else image_id
                images.extend(image | {"id": number} for image in record["images"])
                categories |= {category["id"]: category for category in record["categories"]}
                for annotation in record["annotations"]:
                    separator = ",\n" if written else "\n"
                    written += 1
                    line = annotation | {"id": written, "image_id": number}
                    file.write(separator + json.dumps(line, allow_nan=False))
            file.write('\n],\n"images": ' + json.dumps(images))
            file.write(',\n"categories": ' + json.dumps([categories[key] for key in sorted(categories)]) + "}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}", got=error.strerror, expected="space, and the right to") from error
    finally:
        partial.unlink(missing_ok=True)
