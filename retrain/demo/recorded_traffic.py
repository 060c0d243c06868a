"""Anybody's recorded chats as a demo: the recorded teacher then answers from the file."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from gateway.config import Claim, PromptContract
from gateway.errors import ConfigError
from gateway.prompt import system_text
from retrain.demo.options import Plan
from retrain.demo.output_kind import detect, short_prompt
from retrain.demo.recorded_teacher import MODEL, key_of
from retrain.demo.scenario import Case, Scenario
from retrain.traffic import Recorded, read_traffic

#: Without periods in the file: this share is collected, the rest halved into the two rounds.
COLLECT_SHARE = 0.6
#: Fewer exchanges than this can neither train nor certify anything.
FEWEST = 100


def recorded_traffic(path: Path, plan: Plan) -> Scenario:
    """The file's exchanges in three parts, and the task read off them.

    Each line's metadata may say ``period`` (1: collected, 2: first round, 3: second round; where
    there is no 3, period 2 is dealt out to both rounds), ``off_task`` (true: nothing the task is
    for) and ``gold`` (the right answer). Without any period the file's order is that of time.
    More than the plan's sizes is thinned out evenly. Raises TrafficError, ConfigError.
    """
    recorded = _distinct(read_traffic(path))
    if len(recorded) < FEWEST:
        raise ConfigError(
            f"--traffic: {path} has {len(recorded)} different exchanges; at least {FEWEST} "
            "are needed"
        )
    collect, first, second = _parts(recorded)
    for name, part in (("collect", collect), ("first round", first), ("second round", second)):
        if not part:
            raise ConfigError(f"--traffic: {path} leaves nothing for the {name} (metadata.period)")
    output = detect([row.answer for row in recorded if not _off_task(row)] or ["-"])
    if output.kind == "label":
        # what the teacher says to strays is one of its answers too
        labels = {*output.labels, *(row.answer.strip() for row in recorded if _off_task(row))}
        output = output.model_copy(update={"labels": sorted(labels)})
    systems = {system_text(row.body["messages"]) for row in recorded}
    system = systems.pop() if len(systems) == 1 else None
    return Scenario(
        task="recorded",
        about=f"{path.name}: {len(recorded):,} recorded exchanges",
        model=MODEL,
        claim=Claim(model=[MODEL])
        if system is None
        else Claim(system_sha256=sha256(system.encode()).hexdigest()),
        prompt=PromptContract(system=short_prompt(output)),
        output=output,
        collect=_cases(_thin(collect, plan.collect)),
        first=_cases(_thin(first, plan.serve)),
        second=_cases(_thin(second, plan.serve)),
    )


def _distinct(recorded: Sequence[Recorded]) -> list[Recorded]:
    """One per conversation: the queue keeps a repeated request once as well."""
    return list({key_of(row.body["messages"]): row for row in reversed(recorded)}.values())[::-1]


def _parts(
    recorded: Sequence[Recorded],
) -> tuple[list[Recorded], list[Recorded], list[Recorded]]:
    periods = [(row.body.get("metadata") or {}).get("period") for row in recorded]
    if all(period is None for period in periods):
        at = round(COLLECT_SHARE * len(recorded))
        collect, later = list(recorded[:at]), list(recorded[at:])
        half = (len(later) + 1) // 2
        return collect, later[:half], later[half:]
    by: dict[str, list[Recorded]] = {"1": [], "2": [], "3": []}
    for row, period in zip(recorded, periods, strict=True):
        if str(period) not in by:
            raise ConfigError(f"--traffic: metadata.period must be 1, 2 or 3, not {period!r}")
        by[str(period)].append(row)
    if by["3"]:
        return by["1"], by["2"], by["3"]
    return by["1"], by["2"][::2], by["2"][1::2]


def _thin(rows: Sequence[Recorded], most: int) -> list[Recorded]:
    if len(rows) <= most:
        return list(rows)
    return [rows[at * len(rows) // most] for at in range(most)]


def _off_task(row: Recorded) -> bool:
    return (row.body.get("metadata") or {}).get("off_task") in (True, "true")


def _cases(rows: Sequence[Recorded]) -> tuple[Case, ...]:
    return tuple(
        Case(
            messages=tuple(row.body["messages"]),
            teacher=row.answer,
            gold=(row.body.get("metadata") or {}).get("gold"),
            kind="off_task" if _off_task(row) else "known",
        )
        for row in rows
    )
