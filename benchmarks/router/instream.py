"""The in-stream gate: how early a draft's first tokens tell its end, and what that does to waiting.

    python benchmarks/router/instream.py [--quick]

**Tokens.** No public data set at hand has the token log-probabilities of a distilled student, so
the drafts here are *made up*, and how much of a draft's fate shows in its first tokens is the
assumption and not the finding. It is therefore varied: of the drafts that go wrong, a share
(``wrong from the start``) is doubtful from its first token, the rest from a place drawn evenly
over its length. A token's surprise is exponential with mean 0.05 nats where the draft is fine and
0.35 where it is not, each times a log-normal factor per draft (sigma 0.5); a fifth of the drafts
go wrong; those are off the teacher's answer with probability 0.8, the others with 0.02. Fitted on
2,000 drafts, measured on 2,000 others; intervals are bootstraps over these.

**Time.** The gateway itself between a paced student and a paced teacher, four streams at once, a
quarter of them drafts that will not be served. Values are ratios to asking the teacher alone, in
the same run.
"""

import argparse
import asyncio
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from small_bundle import HEADS, SURE, UNSURE, make_router, save_parts
from triage import MESSAGES, configuration, live_bundle

from benchmarks.router.data import Data, find
from benchmarks.router.table import Line, percentiles, resamples
from gateway.prompt import prompt_hash
from gateway.storage import bundles
from router.confidence import default, plain
from router.decision import Answer, Token
from router.output import Kind, OutputSpec
from router.prefix import Prefix, begun, cut, fit_prefix, walk
from router.router import Router
from router.signals import signals
from router.threshold import GRID, NEVER, certify

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

SECTION = "instream"
ALPHA, DELTA, SHARE = 0.05, 0.05, 0.01
WINDOW = 16


# -- tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafts:
    """``scores`` of whole drafts, and ``window_scores`` of their first WINDOW tokens."""

    answers: list[Answer]
    losses: Doubles
    scores: Doubles
    window_scores: Doubles

    @property
    def lengths(self) -> Doubles:
        return np.array([len(answer.tokens) for answer in self.answers], np.float64)


def make(kind: Kind, n: int, early: float, seed: int) -> Drafts:
    """``early``: of the drafts that go wrong, the share that is doubtful from its first token."""
    dice = random.Random(seed)
    answers, losses = [], []
    for _ in range(n):
        bad = dice.random() < 0.2
        pieces = _pieces(kind, dice)
        onset = 0 if not bad or dice.random() < early else dice.randrange(len(pieces))
        factor = math.exp(0.5 * dice.gauss(0.0, 1.0))
        tokens = []
        for place, (text, valued) in enumerate(pieces):
            doubt = factor * (0.35 if bad and place >= onset else 0.05) if valued else 1e-4
            p = max(-20.0, -dice.expovariate(1.0 / doubt))
            rest = math.log(max(1e-9, 1.0 - math.exp(p)))
            # the runner-up takes most of what is left
            tokens.append(Token(text=text, logprob=p, top=tuple(sorted((p, rest - 0.3))[::-1])))
        answers.append(begun(tokens))
        losses.append(float(dice.random() < (0.8 if bad else 0.02)))
    score = default(kind)
    nothing = np.zeros(0)

    def scored(answer: Answer) -> float:
        return score.score(signals(kind, answer), nothing)

    return Drafts(
        answers=answers,
        losses=np.array(losses),
        scores=np.array([scored(answer) for answer in answers]),
        window_scores=np.array([scored(cut(answer, WINDOW)) for answer in answers]),
    )


def _pieces(kind: Kind, dice: random.Random) -> list[tuple[str, bool]]:
    """The tokens' texts, and whether each is (part of) a value."""
    if kind == "text":
        return [(f" w{k}", True) for k in range(dice.randrange(40, 161))]
    made: list[tuple[str, bool]] = [("{", False)]
    for field in range(6):
        made += [('"', False), (f"field{field}", False), ('":', False), (' "', False)]
        made += [(f"v{k} ", True) for k in range(dice.randrange(1, 7))]
        made += [('"', True), (",", False)]
    return [*made[:-1], ("}", False)]


def tokens_lines(quick: bool) -> list[Line]:
    n = 400 if quick else 2000
    kinds: tuple[Kind, ...] = ("text", "json")
    lines: list[Line] = []
    for kind in kinds:
        for early in (1.0, 0.5):
            lines += _of_stream(kind, n, early, 200 if quick else 1000)
    return lines


def _of_stream(kind: Kind, n: int, early: float, times: int) -> list[Line]:
    seen, fresh = make(kind, n, early, seed=1), make(kind, n, early, seed=2)
    certificate = certify(seen.scores, seen.losses, ALPHA, DELTA, binary=True)
    threshold = NEVER if certificate is None else certificate.threshold
    hopeful = min(
        (t for t in GRID if float((seen.losses * (seen.scores >= t)).mean()) <= ALPHA),
        default=NEVER,
    )
    prefix = fit_prefix(kind, seen.answers, (seen.scores >= hopeful).tolist(), share=SHARE)
    # as if the threshold never could get laxer
    bold = fit_prefix(kind, seen.answers, (seen.scores >= threshold).tolist(), share=SHARE)
    name = f"{kind}, {early:.0%} wrong from the start (synthetic)"
    rows = resamples(n, times, seed=3)
    deferred = fresh.scores < threshold
    lines: list[Line] = []

    def line(
        what: str,
        who: str,
        of: Callable[[NDArray[np.int64]], float],
        bar: float | None = None,
        *,
        at_most: bool = False,
    ) -> None:
        low, high = percentiles([of(picked) for picked in rows])
        value = of(np.arange(n))
        lines.append(
            Line(
                section=SECTION,
                what=f"{what}: {name}",
                who=who,
                value=value,
                low=low,
                high=high,
                bar=bar,
                at_most=at_most,
            )
        )

    everything = fresh.lengths
    for who, at in (
        ("no gate: read to the end", np.full(n, np.inf)),
        ("mean log-probability after 16 tokens", _by_mean(kind, seen, fresh, hopeful)),
        ("prefix heads, hopeless whatever comes in", _stops(kind, prefix, fresh.answers)),
        ("prefix heads, for today's threshold", _stops(kind, bold, fresh.answers)),
    ):
        heads = who.startswith("prefix heads, hopeless")
        early_enough = np.isfinite(at) & (at <= _values_at(kind, fresh.answers))
        line(
            "share of eventual deferrals decided within 16 value tokens",
            who,
            lambda p, e=early_enough: _share(e[p], deferred[p]),
            0.8 if heads else None,
        )
        made = np.minimum(everything, at)
        line(
            "student tokens that nobody got, of all",
            who,
            lambda p, m=made, at=at: float(
                (m * (deferred | np.isfinite(at)))[p].sum() / m[p].sum()
            ),
            0.2 if heads else None,
            at_most=True,
        )
        good = fresh.scores >= hopeful
        line(
            "of drafts that a certificate may come to serve, stopped (wanted: 1 % on average)",
            who,
            lambda p, at=at, g=good: _share(np.isfinite(at)[p], g[p]),
        )
    if kind == "text":
        windowed = certify(seen.window_scores, seen.losses, ALPHA, DELTA, binary=True)
        for who, found, scores in (
            ("score of the whole draft", certificate, fresh.scores),
            (f"score of the first {WINDOW} tokens", windowed, fresh.window_scores),
        ):
            t = NEVER if found is None else found.threshold
            line(
                "certified coverage",
                who,
                lambda p, s=scores, t=t: float((s >= t)[p].mean()),
            )
            line(
                "share served in disagreement (promised: 5 %)",
                who,
                lambda p, s=scores, t=t: float((fresh.losses * (s >= t))[p].mean()),
            )
    return lines


def _share(flags: Flags, of: Flags) -> float:
    return float(flags[of].mean()) if of.any() else 0.0


def _stops(kind: Kind, prefix: Prefix | None, answers: Sequence[Answer]) -> Doubles:
    """After how many tokens each draft is stopped; infinity: never."""
    found = np.full(len(answers), np.inf)
    if prefix is None:
        return found
    for row, answer in enumerate(answers):
        for k, seen in walk(kind, answer):
            if prefix.hopeless(k, seen):
                found[row] = _token_of(kind, answer, k)
                break
    return found


def _token_of(kind: Kind, answer: Answer, k: int) -> float:
    """How many tokens there are when the k-th value token is there."""
    if kind != "json":
        return float(k)
    values = 0
    for place, token in enumerate(answer.tokens, 1):
        values += token.text.startswith("v") or (token.text == '"' and _ends(answer, place))
        if values >= k:
            return float(place)
    return math.inf


def _ends(answer: Answer, place: int) -> bool:
    return place > 1 and answer.tokens[place - 2].text.startswith("v")


def _values_at(kind: Kind, answers: Sequence[Answer]) -> Doubles:
    return np.array([_token_of(kind, answer, 16) for answer in answers])


def _by_mean(kind: Kind, seen: Drafts, fresh: Drafts, hopeful: float) -> Doubles:
    """The simplest rule: one look, at the plain score of 16 value tokens, with a limit that loses
    one in a hundred of the drafts that would be served."""

    def means(drafts: Drafts) -> Doubles:
        found = [dict(walk(kind, answer)) for answer in drafts.answers]
        return np.array([plain("text", at[16]) if 16 in at else np.inf for at in found])

    limit = float(np.quantile(means(seen)[seen.scores >= hopeful], SHARE, method="lower"))
    return np.where(means(fresh) < limit, _values_at(kind, fresh.answers), np.inf)


# -- time

TEACHER_FIRST_S, TEACHER_TOKEN_S = 0.25, 0.005
STUDENT_FIRST_S, STUDENT_TOKEN_S = 0.03, 0.008
LENGTH = 48
UNSURE_EVERY = 4


def time_lines(quick: bool) -> list[Line]:
    n = 8 if quick else 80
    text = replace(
        make_router(),
        spec=OutputSpec(kind="text", max_tokens=LENGTH + 1),
        confidence=default("text"),
    )
    modes: list[tuple[str, Router | None, dict[str, Any]]] = [
        ("teacher alone", None, {}),
        ("draft held whole", text, {}),
        ("held whole, hopeless stopped early", replace(text, prefix=HEADS), {}),
        ("window of 8", replace(text, window=8), _window(8)),
        ("window of 8, hopeless stopped early", replace(text, window=8, prefix=HEADS), _window(8)),
    ]
    measured = {who: _waits(router, task, n) for who, router, task in modes}
    alone, whole = measured["teacher alone"]
    lines = []
    for who, (first, all_of_it) in measured.items():
        for what, ours, theirs in (
            ("time to the first token", first, alone),
            ("time to the last token", all_of_it, whole),
        ):
            for q in (50, 95):
                lines.append(
                    Line(
                        section=SECTION,
                        what=f"{what}, p{q}, 25 % deferred, paced fakes",
                        who=who,
                        value=float(np.percentile(ours, q) / np.percentile(theirs, q)),
                        bar=1.0 if q == 95 and first is ours and "window" in who else None,
                        at_most=True,
                        unit="of the teacher's",
                    )
                )
    return lines


def _window(tokens: int) -> dict[str, Any]:
    return {"release": {"mode": "window", "window": tokens}}


def _waits(router: Router | None, task: dict[str, Any], n: int) -> tuple[list[float], list[float]]:
    """Seconds to the first and to the last token of each of ``n`` streams."""

    def student(body: dict[str, Any]) -> Reply:
        unsure = body["messages"][-1]["content"].endswith("unsure")
        logprob = UNSURE if unsure else SURE
        tokens = [Token(text=f"s{k} ", logprob=logprob, top=(logprob, -5.0)) for k in range(LENGTH)]
        return Reply(
            text="".join(token.text for token in tokens),
            tokens=tokens,
            delay_s=STUDENT_FIRST_S,
            chunk_delay_s=STUDENT_TOKEN_S,
        )

    words = "".join(f"t{k} " for k in range(LENGTH)).strip()
    teacher = Reply(text=words, delay_s=TEACHER_FIRST_S, chunk_delay_s=TEACHER_TOKEN_S)
    with (
        tempfile.TemporaryDirectory() as folder,
        FakeOpenAI(teacher, models=("gpt-large",)) as large,
        FakeOpenAI(student, models=("student-base",), strict_models=True, vllm=True) as small,
    ):
        output = {"output": {"kind": "text", "max_tokens": LENGTH + 1}, "ood_epsilon": 0.0}
        config = configuration(Path(folder) / "state", (large, small), output | task)
        gateway = RunningGateway(config)
        if router is not None:
            _promote(gateway, replace(router, ood_epsilon=0.0), Path(folder) / "trained")
        with gateway:
            if router is not None:
                wait_until(lambda: live_bundle(gateway) is not None)
            return asyncio.run(_ask_all(gateway.url, n))


def _promote(gateway: RunningGateway, router: Router, source: Path) -> None:
    task = gateway.config.task()
    adapter_dir, router_dir = save_parts(source, router)
    files = bundles.write_bundle(
        gateway.config.state / "bundles",
        task=task.name,
        adapter_dir=adapter_dir,
        router_dir=router_dir,
        base_model="student-base",
        prompt_hash=prompt_hash(task.prompt),
        dataset_id="d1",
        detail={},
    )
    bundles.register(gateway.store, files, None, None, {})
    bundles.promote(gateway.store, files.id)


async def _ask_all(url: str, n: int) -> tuple[list[float], list[float]]:
    first: list[float] = []
    whole: list[float] = []
    waiting = iter(range(n))

    async def client(session: aiohttp.ClientSession) -> None:
        for k in waiting:
            asked = f"my parcel {k} is {'unsure' if k % UNSURE_EVERY == 0 else 'late'}"
            messages = [MESSAGES[0], {"role": "user", "content": asked}]
            body = {"model": "gpt-large", "messages": messages, "stream": True}
            started, seen = time.perf_counter(), False
            async with session.post(f"{url}/chat/completions", json=body) as response:
                assert response.status == 200
                async for line in response.content:
                    if not seen and b'"content":"' in line and b'"content":""' not in line:
                        first.append(time.perf_counter() - started)
                        seen = True
            whole.append(time.perf_counter() - started)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(4)))
    return first, whole


def measure(data: Data, quick: bool) -> list[Line]:
    return [*tokens_lines(quick), *time_lines(quick)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    for line in measure(find(), parser.parse_args().quick):
        between = "" if line.low is None else f" [{line.low:.3f}, {line.high:.3f}]"
        bar = "" if line.bar is None else f"  bar {line.bar:g} {'met' if line.met else 'missed'}"
        print(f"{line.what:95} {line.who:42} {line.value:.3f}{between}{bar}")


if __name__ == "__main__":
    main()
