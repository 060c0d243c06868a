"""Writes the dashboards, and the chart's copies of them and of the rules.

    python dashboards/generate.py            # write
    python dashboards/generate.py --check    # exit 1 if a committed file is not up to date

A chart may only read files in its own folder, hence the copies.
"""

import json
import sys
from pathlib import Path

from overview import overview
from student import student

HERE = Path(__file__).parent
CHART = HERE.parent / "helm" / "files"


def files() -> dict[Path, str]:
    """Every generated file with its text."""
    made = {
        f"{name}.json": json.dumps(build(), indent=2, ensure_ascii=False) + "\n"
        for name, build in (("overview", overview), ("student", student))
    }
    rules = (HERE / "rules.yaml").read_text(encoding="utf-8")
    return {
        **{HERE / name: text for name, text in made.items()},
        **{CHART / name: text for name, text in made.items()},
        CHART / "rules.yaml": rules,
    }


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = [
        path
        for path, text in files().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if check:
            print(f"{path.relative_to(HERE.parent)} is not up to date", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files()[path], encoding="utf-8")
            print(path.relative_to(HERE.parent))
    if check and stale:
        print("run: python dashboards/generate.py", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
