"""BANKING77 with GPT-4's own recorded answers, as traffic for `retort demo --traffic FILE`.

    python benchmarks/banking77_traffic.py banking77.jsonl
    retort demo --traffic banking77.jsonl

The questions, their gold intents and GPT-4's (fallible: 83 % right) answers are those of the OCaTS
study (stoyian/OCaTS; texts from BANKING77, CC BY 4.0). Off-task messages are CLINC150's
out-of-scope questions (clinc/oos-eval, CC BY 3.0), in the two later rounds only. GPT-4 was never
asked those; `out_of_scope` is what the system prompt tells it to answer, written here by us, and
each such line's metadata says so. The data is read from $RETORT_DATA (default: ../shared/data).
"""

import argparse
import gzip
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEACHER = "banking77_ocats_gpt4_teacher.jsonl.gz"
STRAYS = "clinc150_full.jsonl.gz"
OUT_OF_SCOPE = "out_of_scope"
#: Off-task share of the later rounds, and how the questions are dealt to the three periods.
OFF_TASK_SHARE = 0.15
PERIODS = ((1, 0.6), (2, 0.2), (3, 0.2))

SYSTEM = """\
You route messages in the help chat of a retail bank's app. Read the customer's message and answer \
with the name of the one intent it expresses, exactly as written in this list, and nothing else:
{intents}
If the message has nothing to do with the bank's services, answer {out}. If several intents could \
apply, choose the most specific one."""


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def traffic(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    """The lines of the file, in the order of time."""
    draw = random.Random(seed)
    questions = list(rows(folder / TEACHER))
    strays = [row["text"] for row in rows(folder / STRAYS) if row["label"] == "oos"]
    draw.shuffle(questions)
    draw.shuffle(strays)
    intents = "\n".join(sorted({row["gold"] for row in questions}))
    system = {"role": "system", "content": SYSTEM.format(intents=intents, out=OUT_OF_SCOPE)}

    def line(text: str, answer: str, **metadata: Any) -> dict[str, Any]:
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return {"messages": [system, *turns], "metadata": metadata}

    total = len(questions)
    for period, share in PERIODS:
        taken = round(share * total) if period < len(PERIODS) else len(questions)
        part, questions = questions[:taken], questions[taken:]
        lines = [
            line(row["text"], row["gpt4"].strip(), gold=row["gold"], period=period, teacher="gpt-4")
            for row in part
        ]
        if period > 1:
            count = round(len(part) * OFF_TASK_SHARE / (1 - OFF_TASK_SHARE))
            off, strays = strays[:count], strays[count:]
            more = {"period": period, "off_task": True, "teacher": "by instruction, not recorded"}
            lines += [line(text, OUT_OF_SCOPE, gold=OUT_OF_SCOPE, **more) for text in off]
            draw.shuffle(lines)
        yield from lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="JSONL file to write")
    parser.add_argument("--seed", type=int, default=17)
    args = parser.parse_args()
    folder = Path(os.environ.get("RETORT_DATA", Path(__file__).parents[1] / "../shared/data"))
    missing = [name for name in (TEACHER, STRAYS) if not (folder / name).is_file()]
    if missing:
        print(f"no {missing[0]} in {folder}; set RETORT_DATA", file=sys.stderr)
        return 1
    lines = list(traffic(folder, args.seed))
    with args.file.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    print(f"{len(lines)} exchanges written to {args.file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
