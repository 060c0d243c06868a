"""The post-gate: how well each score tells a student's right answers from its wrong ones.

    RETORT_DATA=<folder> python benchmarks/router/postgate.py

Reads llm_uq_bench_option_logits.npz: one token's logits of sixteen models on the 10,000 questions
of two tasks. A student is right where it picks the strong model's option. Its answers are built as
the gateway reads them, one token with its alternatives and their names, of which the router sees
as many as the gateway asks for; heads are fitted on 2,000 questions and judged on the other 8,000.
``head`` is ``learn_head`` on all 2,000; ``router`` is the score that ``fit_router`` ships from the
same rows, of which a third is the head's and the rest the certificate's.

The bar is the logistic regression on the log-probabilities of *all* options (not only those the
gateway asks for), in the best of three forms: to right or wrong, the same with the student's answer
as an input, and to the teacher's option, of which the student's is then looked up.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.router.data import Data, find
from benchmarks.router.table import Line, percentiles
from gateway.draft import TOP_LOGPROBS
from router.confidence import Confidence, default, learn_head, plain
from router.decision import Answer, Token
from router.output import OutputSpec
from router.ranking import apgr, auroc, resampled
from router.router import Judged, fit_router
from router.signals import Signals, signals

Doubles = NDArray[np.float64]

SECTION = "post-gate"
LETTERS = tuple("ABCDEF")
FIT_ROWS = 2000
BINS = 15
#: the four that research compared
PAIRS = (
    ("cosmosqa", "Qwen-14B", "Yi-34B"),
    ("cosmosqa", "Qwen-7B", "Yi-34B"),
    ("hellaswag", "Qwen-14B", "Yi-34B"),
    ("hellaswag", "Qwen-7B", "Yi-34B"),
)
#: and other students of stronger models
OTHERS = tuple(
    (task, student, teacher)
    for task in ("cosmosqa", "hellaswag")
    for student, teacher in (
        ("Llama-2-7b-hf", "Llama-2-70b-hf"),
        ("Mistral-7B-v0.1", "Qwen-72B"),
        ("Yi-6B", "Yi-34B"),
        ("deepseek-llm-7b-base", "deepseek-llm-67b-base"),
        ("internlm-7b", "Qwen-72B"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """``logs`` (n, 6): the student's log-probabilities; ``wanted``: the teacher's option."""

    name: str
    logs: Doubles
    answers: list[Answer]
    signals: list[Signals]
    wanted: NDArray[np.intp]

    @property
    def losses(self) -> Doubles:
        return (self.logs.argmax(axis=1) != self.wanted).astype(np.float64)


def pair(arrays: Mapping[str, NDArray[Any]], task: str, student: str, teacher: str) -> Pair:
    logits = np.asarray(arrays[f"{task}_10k|{student}"], np.float64)
    logs = logits - logits.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    answers = [draft(row) for row in logs]
    return Pair(
        name=f"{task} {student} → {teacher}",
        logs=logs,
        answers=answers,
        signals=[signals("label", answer, labels=LETTERS) for answer in answers],
        wanted=np.asarray(arrays[f"{task}_10k|{teacher}"], np.float64).argmax(axis=1),
    )


def draft(logs: Doubles) -> Answer:
    """The answer as the gateway would have read it."""
    order = np.argsort(-logs, kind="stable")[:TOP_LOGPROBS].tolist()
    names = tuple(LETTERS[at] for at in order)
    top = tuple(float(logs[at]) for at in order)
    token = Token(text=names[0], logprob=top[0], top=top, names=names)
    return Answer(text=names[0], tokens=(token,))


Score = Callable[[Pair, NDArray[np.intp], NDArray[np.intp]], Doubles]


def at_random(pair: Pair, fit: NDArray[np.intp], test: NDArray[np.intp]) -> Doubles:
    return np.random.default_rng(0).random(len(test))


def log_probability(pair: Pair, fit: NDArray[np.intp], test: NDArray[np.intp]) -> Doubles:
    return np.array([plain("label", pair.signals[at]) for at in test])


def margin_isotonic(pair: Pair, fit: NDArray[np.intp], test: NDArray[np.intp]) -> Doubles:
    """UCCI: the token margin through an isotonic regression."""
    from sklearn.isotonic import IsotonicRegression

    margins = np.array([signal.margin for signal in pair.signals])
    curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    return np.asarray(curve.fit(margins[fit], 1.0 - pair.losses[fit]).predict(margins[test]))


def all_options(pair: Pair, fit: NDArray[np.intp], test: NDArray[np.intp]) -> Doubles:
    return _regression(pair.logs, pair, fit, test)


def all_options_and_answer(pair: Pair, fit: NDArray[np.intp], test: NDArray[np.intp]) -> Doubles:
    said = np.eye(len(LETTERS))[pair.logs.argmax(axis=1)]
    return _regression(np.hstack([pair.logs, said]), pair, fit, test)


def all_options_to_teacher(pair: Pair, fit: NDArray[np.intp], test: NDArray[np.intp]) -> Doubles:
    model = _model().fit(pair.logs[fit], pair.wanted[fit])
    shares = np.zeros((len(test), len(LETTERS)))
    shares[:, model[-1].classes_] = model.predict_proba(pair.logs[test])
    found: Doubles = shares[np.arange(len(test)), pair.logs[test].argmax(axis=1)]
    return found


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def _regression(x: Doubles, pair: Pair, fit: NDArray[np.intp], test: NDArray[np.intp]) -> Doubles:
    model = _model().fit(x[fit], pair.losses[fit] == 0.0)
    return np.asarray(model.predict_proba(x[test])[:, 1])


def head(pair: Pair, fit: NDArray[np.intp], test: NDArray[np.intp]) -> Doubles:
    """What ``learn_head`` makes of the rows: the plain score where nothing beats it."""
    no_views = np.zeros(0)
    base = default("label", LETTERS)
    learned, contest = learn_head(
        base,
        [(pair.signals[at], no_views) for at in fit],
        pair.losses[fit].tolist(),
        seed=17,
        wanted=pair.wanted[fit].tolist(),
    )
    lead = contest.leads.get(contest.won)
    gain = "" if lead is None else f", AUROC +{lead.auroc:.3f}, APGR +{lead.apgr:.3f} (own folds)"
    print(f"  {pair.name}: {contest.won} wins{gain}")
    confidence: Confidence = learned or base
    return np.array([confidence.score(pair.signals[at], no_views) for at in test])


def router(pair: Pair, fit: NDArray[np.intp], test: NDArray[np.intp]) -> Doubles:
    """The score of ``fit_router``, which keeps two thirds of the rows for the certificate."""
    fitted = fit_router(
        spec=OutputSpec(kind="label", labels=LETTERS),
        train=[],
        calibration=[
            Judged(
                prompt=f"question {at}",
                student=pair.answers[at],
                teacher=LETTERS[pair.wanted[at]],
            )
            for at in fit.tolist()
        ],
        max_disagreement=0.05,
        confidence=0.95,
        ood_epsilon=0.01,
    )
    return np.array([fitted.score("", pair.answers[at]) for at in test])


BARS: dict[str, Score] = {
    "LR, all options": all_options,
    "LR, all options + answer": all_options_and_answer,
    "LR, all options → teacher's": all_options_to_teacher,
}
SCORES: dict[str, Score] = {
    "random": at_random,
    "log-probability": log_probability,
    "margin + isotonic (UCCI)": margin_isotonic,
    **BARS,
    "router": router,
    "head": head,
}


def ece(scores: Doubles, right: NDArray[np.bool_]) -> float:
    """The expected calibration error over BINS equally full bins."""
    order = np.argsort(scores, kind="stable")
    gaps = [
        len(part) * abs(float(scores[part].mean()) - float(right[part].mean()))
        for part in np.array_split(order, BINS)
    ]
    return sum(gaps) / len(order)


def measure(data: Data, quick: bool) -> list[Line]:
    arrays = data.arrays("llm_uq_bench_option_logits")
    if arrays is None:
        return []
    lines: list[Line] = []
    for names in PAIRS[3:] if quick else (*PAIRS, *OTHERS):
        lines += compare(pair(arrays, *names), splits=3 if names in PAIRS and not quick else 1)
    return lines


def compare(pair: Pair, splits: int) -> list[Line]:
    """The lines of one pair, over ``splits`` random splits; intervals hold the bootstrap samples of
    all of them."""
    values: dict[tuple[str, str], list[float]] = {}
    samples: dict[tuple[str, str], list[Doubles]] = {}
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(pair.logs))
        fit, test = order[:FIT_ROWS], order[FIT_ROWS:]
        losses = pair.losses[test]
        for who, score in SCORES.items():
            scores = score(pair, fit, test)
            found = {
                "AUROC": auroc(scores, losses == 0.0),
                "APGR": apgr(scores, losses),
                "ECE": ece(scores, losses == 0.0),
            }
            for what, value in found.items():
                values.setdefault((what, who), []).append(value)
            drawn = resampled(scores, losses, seed=split)
            for what, sample in zip(("AUROC", "APGR"), drawn, strict=True):
                samples.setdefault((what, who), []).append(sample)
    mean = {key: float(np.mean(found)) for key, found in values.items()}
    best = max(BARS, key=lambda who: mean["APGR", who])
    lines = []
    for (what, who), value in mean.items():
        drawn_here = samples.get((what, who))
        low, high = (None, None) if drawn_here is None else percentiles(np.concatenate(drawn_here))
        bar = mean[what, best] if (what, who) == ("APGR", "head") else None
        lines.append(
            Line(
                section=SECTION,
                what=f"{pair.name}: {what}",
                who=who,
                value=value,
                low=low,
                high=high,
                bar=bar,
            )
        )
    leads = np.concatenate(samples["APGR", "head"]) - np.concatenate(samples["APGR", best])
    low, high = percentiles(leads)
    lines.append(
        Line(
            section=SECTION,
            what=f"{pair.name}: APGR over {best}",
            who="head",
            value=mean["APGR", "head"] - mean["APGR", best],
            low=low,
            high=high,
        )
    )
    return lines


def main() -> None:
    for line in measure(find(), quick="--quick" in sys.argv):
        interval = "" if line.low is None else f"[{line.low:.4f}, {line.high:.4f}]"
        met = {None: "", True: "met", False: "NOT MET"}[line.met]
        print(f"{line.what:66}{line.who:28}{line.value:8.4f}  {interval:20}{met}")


if __name__ == "__main__":
    main()
