import json
import re
import statistics
from collections import Counter

import pytest

from gateway.storage.exchanges import group_key
from retrain.demo.desk import SYSTEM_PROMPT, desk
from retrain.demo.options import FULL, QUICK
from retrain.demo.recorded_teacher import count_tokens
from retrain.demo.tickets import OTHER, SLIP_SHARE, categories, lexicon, write_tickets


@pytest.fixture(scope="module")
def periods():
    seen: set[str] = set()
    return (
        write_tickets(1400, period=1, seed=17, seen=seen),
        write_tickets(400, period=2, seed=17, seen=seen),
        write_tickets(400, period=2, seed=18, seen=seen),
    )


def test_thousands_of_tickets_are_all_different_even_to_the_queue(periods):
    keys = [group_key(ticket.text) for part in periods for ticket in part]
    assert len(set(keys)) == len(keys) == 2200


def test_same_seed_writes_the_same_tickets_and_another_seed_others():
    again = [write_tickets(50, period=1, seed=3, seen=set()) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != write_tickets(50, period=1, seed=4, seen=set())


def test_tickets_are_short_and_varied(periods):
    lengths = [len(ticket.text.split()) for ticket in periods[0] if ticket.kind == "known"]
    assert statistics.median(lengths) <= 22
    assert min(lengths) >= 8 and max(lengths) <= 35


def test_first_period_is_balanced_and_has_only_its_own_categories(periods):
    counts = Counter(ticket.gold.category for ticket in periods[0])
    assert set(counts) == {*categories(1), OTHER}
    known = [counts[name] for name in categories(1)]
    assert len(known) == 12 and max(known) <= min(known) + 1
    humans = sum(ticket.gold.needs_human for ticket in periods[0])
    assert 0.2 < humans / 1400 < 0.4
    priorities = Counter(ticket.gold.priority for ticket in periods[0])
    assert min(priorities.values()) > 0.2 * 1400


def test_second_period_brings_unseen_kinds_and_more_off_task(periods):
    for part in periods[1:]:
        kinds = Counter(ticket.kind for ticket in part)
        assert kinds["unseen"] == 60 and kinds["off_task"] == 48
        assert {t.gold.category for t in part if t.kind == "off_task"} == {OTHER}
        assert set(categories(2)) <= {t.gold.category for t in part if t.kind == "unseen"}
        assert {t.gold.category for t in part if t.kind == "known"} == set(categories(1))


def test_teacher_is_nearly_always_right_and_never_off_by_more_than_one_field(periods):
    tickets = [ticket for part in periods for ticket in part]
    slips = [ticket for ticket in tickets if ticket.teacher != ticket.gold]
    assert SLIP_SHARE / 2 < len(slips) / len(tickets) < SLIP_SHARE * 2
    for ticket in slips:
        differs = [
            getattr(ticket.teacher, name) != getattr(ticket.gold, name)
            for name in ("category", "priority", "needs_human")
        ]
        assert sum(differs) == 1


def test_every_category_is_explained_to_the_teacher():
    for name in (*categories(), OTHER):
        assert f"- {name}: " in SYSTEM_PROMPT
    assert 500 < count_tokens(SYSTEM_PROMPT) < 900


def test_every_slot_of_the_word_lists_can_be_filled():
    slots = lexicon()["slots"] | lexicon()["off_slots"]
    assert set(re.findall(r"{(\w+)}", json.dumps(lexicon()))) == set(slots)


@pytest.mark.parametrize("plan", [QUICK, FULL])
def test_desk_has_the_plans_sizes_and_a_table_for_all_of_it(plan):
    scenario = desk(plan, seed=17)
    assert len(scenario.collect) == plan.collect
    assert len(scenario.first) == len(scenario.second) == plan.serve
    assert len(scenario.answers()) == plan.collect + 2 * plan.serve
    assert all(case.teacher is None for case in scenario.live().cases)
