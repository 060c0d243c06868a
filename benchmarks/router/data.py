"""The public data sets of the benchmark, from the folder in RETORT_DATA. Never committed."""

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Data:
    """``folder`` is None where there is none; sections then use synthetic streams or return
    nothing and say so."""

    folder: Path | None

    def rows(self, name: str) -> list[dict[str, Any]] | None:
        """The rows of ``name``.jsonl.gz; None, with a line on the screen, where it is missing."""
        path = None if self.folder is None else self.folder / f"{name}.jsonl.gz"
        if path is None or not path.is_file():
            print(f"skipped: {name}.jsonl.gz (set RETORT_DATA to the folder with the data sets)")
            return None
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def arrays(self, name: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of ``name``.npz; None, with a line on the screen, where it is missing."""
        path = None if self.folder is None else self.folder / f"{name}.npz"
        if path is None or not path.is_file():
            print(f"skipped: {name}.npz (set RETORT_DATA to the folder with the data sets)")
            return None
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}


def find() -> Data:
    folder = Path(os.environ.get("RETORT_DATA", "../shared/data"))
    return Data(folder if folder.is_dir() else None)
