"""Whether certificates keep their promise on real students and teachers, and what they cost.

    RETORT_DATA=<folder> python benchmarks/router_threshold.py

Reads llm_uq_bench_option_logits.npz from RETORT_DATA: one token's logits of two real models on
10,000 questions. The student agrees with the teacher where both pick the same option. 300 times,
1,000 questions calibrate a router (``fit_router`` as it is, with its learned head) and all others
show what was promised. Violations may exceed δ = 5 % only by noise (±2.5 points).
"""

import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router.decision import Answer, Token
from router.output import OutputSpec
from router.router import Judged, fit_router
from router.threshold import GRID

TRIALS = 300
PAIRS = (
    ("cosmosqa", "Qwen-14B", "Yi-34B"),
    ("hellaswag", "Qwen-7B", "Yi-34B"),
)
LETTERS = "ABCDEF"


def find(names: list[str], task: str, model: str) -> str:
    wanted = [n for n in names if task in n.lower() and model.lower() in n.lower()]
    if not wanted:
        sys.exit(f"skipped: no {task} | {model} among {', '.join(names)}")
    return wanted[0]


def judged(student: NDArray[np.float64], teacher: NDArray[np.float64]) -> list[Judged]:
    logs = student - student.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    out = []
    for at, row in enumerate(logs):
        top = tuple(sorted(row.tolist(), reverse=True))
        letter = LETTERS[int(row.argmax())]
        token = Token(text=letter, logprob=top[0], top=top)
        out.append(
            Judged(
                prompt=f"question {at}",
                student=Answer(text=letter, tokens=(token,)),
                teacher=LETTERS[int(teacher[at].argmax())],
            )
        )
    return out


def main() -> None:
    path = Path(os.environ.get("RETORT_DATA", "../shared/data")) / "llm_uq_bench_option_logits.npz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is missing (set RETORT_DATA to the folder with the data sets)")
    spec = OutputSpec(kind="label", labels=tuple(LETTERS))
    with np.load(path, allow_pickle=False) as file:
        names = list(file.files)
        for task, student, teacher in PAIRS:
            logits = [
                np.asarray(file[find(names, task, model)], np.float64)
                for model in (student, teacher)
            ]
            rows = judged(*logits)
            wrong = np.array([row.student.text != row.teacher for row in rows])
            print(f"\n{task}: {student} for {teacher}, agreement {100 * (1 - wrong.mean()):.1f} %")
            print("  α      violations  coverage  head used   plug-in: violations  coverage")
            for alpha in (0.01, 0.02, 0.05):
                resample(spec, rows, wrong, alpha)


def resample(spec: OutputSpec, rows: list[Judged], wrong: NDArray[np.bool_], alpha: float) -> None:
    rng = np.random.default_rng(1)
    broken, covered, heads, plugged, open_ = [], [], [], [], []
    plain = np.array([np.exp(row.student.tokens[0].logprob) for row in rows])
    for _ in range(TRIALS):
        order = rng.permutation(len(rows))
        used, rest = order[:1000], order[1000:4000]
        router = fit_router(
            spec=spec,
            train=[],
            calibration=[rows[at] for at in used],
            max_disagreement=alpha,
            confidence=0.95,
            ood_epsilon=0.01,
        )
        heads.append(router.confidence.learned)
        if router.confidence.learned:
            scores = np.array([router.score(rows[at].prompt, rows[at].student) for at in rest])
        else:
            scores = plain[rest]
        served = scores >= router.threshold
        broken.append((served & wrong[rest]).mean() > alpha)
        covered.append(served.mean())
        lax = min(t for t in GRID if (wrong[used] & (plain[used] >= t)).mean() <= alpha)
        plugged.append((wrong[rest] & (plain[rest] >= lax)).mean() > alpha)
        open_.append((plain[rest] >= lax).mean())
    b, c, h, p, o = (100 * float(np.mean(x)) for x in (broken, covered, heads, plugged, open_))
    print(f"  {100 * alpha:.0f} % {b:12.1f} {c:9.1f} {h:9.0f} {p:18.1f} {o:13.1f}")


if __name__ == "__main__":
    main()
