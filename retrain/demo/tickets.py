"""A support desk's tickets, written by a small grammar, with the triage a teacher gave them.

Everything is made up: an online shop, its fifteen kinds of trouble, customers in a hurry, angry,
or typing on a phone, and people who write to a support desk about the weather. Every ticket
carries its gold triage, which follows the rules of the application's system prompt, and the
recorded teacher's answer, which is the gold one but for realistic slips (`SLIP_SHARE`).
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, Literal

from gateway.storage.exchanges import group_key
from retrain.demo.scenario import Kind

Priority = Literal["low", "normal", "high"]

#: Share of tickets the recorded teacher gets wrong, as good models do on ambiguous text.
SLIP_SHARE = 0.02
#: What the teacher answers to anything that is no support request, by its instructions.
OTHER = "other"
#: Shares of the later period's traffic: kinds of trouble no earlier ticket had, and other things.
UNSEEN_SHARE, OFF_TASK_SHARE = 0.15, 0.12
#: Share of off-task messages in the first period: the odd one comes to every desk.
EARLY_OFF_TASK_SHARE = 0.02
SHORTEST_WORDS, LONGEST_WORDS = 8, 35

#: Kinds of trouble that are easily taken for each other; the teacher's slips go there.
NEIGHBOURS = {
    "billing_refund": "double_charge",
    "double_charge": "billing_refund",
    "login_problem": "password_reset",
    "password_reset": "login_problem",
    "shipping_delay": "wrong_item",
    "damaged_item": "wrong_item",
    "wrong_item": "damaged_item",
    "cancel_subscription": "billing_refund",
    "change_address": "shipping_delay",
    "invoice_copy": "billing_refund",
    "app_crash": "login_problem",
    "discount_code": "billing_refund",
    "security_incident": "login_problem",
    "data_deletion": "cancel_subscription",
    "feature_request": "app_crash",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Triage:
    """What the application wants to know about a ticket."""

    category: str
    priority: Priority
    needs_human: bool

    def text(self) -> str:
        """The compact JSON object the application reads."""
        return json.dumps(
            {
                "category": self.category,
                "priority": self.priority,
                "needs_human": self.needs_human,
            },
            separators=(",", ":"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One message to the desk. ``kind`` says why it is there: a kind of trouble the first period
    has, one it has not (or a foreign language), or nothing a support desk is for."""

    text: str
    gold: Triage
    teacher: Triage
    kind: Kind


@cache
def lexicon() -> Mapping[str, Any]:
    """The word lists, from tickets.json."""
    text = files("retrain.demo").joinpath("tickets.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def categories(period: int | None = None) -> tuple[str, ...]:
    """The kinds of trouble, or only those first seen in ``period`` (1 or 2)."""
    known = lexicon()["categories"]
    return tuple(name for name in known if period in (None, known[name]["period"]))


def write_tickets(count: int, *, period: int, seed: int, seen: set[str]) -> list[Ticket]:
    """``count`` tickets of the period's mixture, none like one in ``seen``, which they join.

    Two tickets are alike when the retraining queue would group them (`group_key`), so that later
    traffic never repeats training traffic. The same arguments write the same tickets.
    """
    rng = random.Random(f"{seed}/{period}")
    unseen = UNSEEN_SHARE if period > 1 else 0.0
    off_task = OFF_TASK_SHARE if period > 1 else EARLY_OFF_TASK_SHARE
    kinds = _deal(rng, count, {"unseen": unseen, "off_task": off_task}, rest="known")
    deck: list[str] = []
    tickets = []
    for kind in kinds:
        if kind == "known" and not deck:
            # dealt like cards, so that a small sample is balanced and a run is not luck
            deck = rng.sample(categories(1), k=len(categories(1)))
        category = deck.pop() if kind == "known" else ""
        for _ in range(1000):
            ticket = _write(rng, kind, category)
            key = group_key(ticket.text)
            if key not in seen:
                break
        else:
            raise ValueError(f"the grammar has no {count} different tickets of kind {kind}")
        seen.add(key)
        tickets.append(ticket)
    return tickets


def _deal(
    rng: random.Random, count: int, shares: Mapping[Kind, float], *, rest: Kind
) -> list[Kind]:
    dealt: list[Kind] = []
    for kind, share in shares.items():
        dealt += [kind] * round(share * count)
    dealt += [rest] * (count - len(dealt))
    rng.shuffle(dealt)
    return dealt


def _write(rng: random.Random, kind: str, category: str) -> Ticket:
    if kind == "off_task":
        words = _off_task(rng)
        gold = Triage(category=OTHER, priority="low", needs_human=False)
        text = _noise(rng, words, frozenset())
        return Ticket(text=text, gold=gold, teacher=gold, kind="off_task")
    if kind == "unseen" and rng.random() < 0.2:
        category, template = rng.choice(lexicon()["foreign"])
        text, gold = _fill(rng, template), _triage(category, set())
        if rng.random() < 0.5:
            text = f"{text} {rng.choice(lexicon()['closings'])}"
        return Ticket(text=text, gold=gold, teacher=_slip(text, gold), kind="unseen")
    if kind == "unseen":
        text, gold = _request(rng, rng.choice(categories(2)))
        return Ticket(text=text, gold=gold, teacher=_slip(text, gold), kind="unseen")
    text, gold = _request(rng, category)
    return Ticket(text=text, gold=gold, teacher=_slip(text, gold), kind="known")


def _request(rng: random.Random, category: str) -> tuple[str, Triage]:
    """A support request and its gold triage."""
    words, rules = lexicon(), lexicon()["categories"][category]
    cues = _cues(rng, category)
    sentences = [_fill(rng, rng.choice(rules["issues"]))]
    if rng.random() < 0.3:
        sentences.append(_fill(rng, rng.choice(rules["details"])))
    elif rng.random() < 0.2:
        sentences.append(_fill(rng, rng.choice(words["neutral"])))
    told = [rng.choice(words["cues"][cue]) for cue in cues]
    if told and rng.random() < 0.25:
        sentences.insert(0, told.pop(0))
    sentences += told
    if rng.random() < 0.14:
        other = rng.choice([name for name in categories(1) if name != category])
        aside = _fill(rng, rng.choice(words["categories"][other]["asides"]))
        if rng.random() < 0.3:
            sentences.insert(0, f"{rng.choice(words['detours'])} {aside}.")
        else:
            sentences.append(f"{rng.choice(words['joins'])} {aside}.")
    body = sentences[0] if rng.random() < 0.8 else f"{rng.choice(words['fillers'])} {sentences[0]}"
    sentences[0] = body
    text = " ".join(_stop(rng, sentence) for sentence in sentences)
    if rng.random() < 0.5:
        greeting = rng.choice(words["greetings"])
        text = f"{greeting}{rng.choice([',', '', '!', ' -'])} {text}"
    if rng.random() < 0.35:
        text = f"{text} {rng.choice(words['closings'])}"
    if not SHORTEST_WORDS <= len(text.split()) <= LONGEST_WORDS:
        return _request(rng, category)
    return _noise(rng, text, cues), _triage(category, set(cues))


def _cues(rng: random.Random, category: str) -> list[str]:
    """Which cues the ticket gives: about its hurry at most one, about a human at most one."""
    cues = []
    draw = rng.random()
    if draw < 0.22:
        cues.append("urgent")
    elif draw < 0.36 and category not in {"security_incident", "double_charge"}:
        return ["relaxed"]
    draw = rng.random()
    if draw < 0.12:
        cues.append("anger")
    elif draw < 0.18:
        cues.append("legal")
    elif draw < 0.24:
        cues.append("person")
    return cues


def _triage(category: str, cues: set[str]) -> Triage:
    """The rules the application's system prompt gives, applied without mistake."""
    rules = lexicon()["categories"][category]
    priority: Priority = rules["priority"]
    if "urgent" in cues:
        priority = "high"
    elif "relaxed" in cues:
        priority = "low"
    human = rules["human"] or not cues.isdisjoint({"anger", "legal", "person"})
    return Triage(category=category, priority=priority, needs_human=human)


def _slip(text: str, gold: Triage) -> Triage:
    """The recorded teacher's answer: the same for the same text, wrong on SLIP_SHARE of them."""
    digest = sha256(text.encode()).digest()
    if int.from_bytes(digest[:4]) / 2**32 >= SLIP_SHARE:
        return gold
    if digest[4] < 128:
        return replace(gold, category=NEIGHBOURS[gold.category])
    if digest[4] < 205:
        return replace(gold, priority="high" if gold.priority == "normal" else "normal")
    return replace(gold, needs_human=not gold.needs_human)


def _off_task(rng: random.Random) -> str:
    words = lexicon()
    text = _fill(rng, rng.choice(words["off_task"][rng.choice(list(words["off_task"]))]))
    if rng.random() < 0.4:
        text = f"{rng.choice(words['greetings'])}, {text}"
    if rng.random() < 0.3:
        text = f"{text} {rng.choice(words['closings'])}"
    return text


def _fill(rng: random.Random, template: str) -> str:
    """``template`` with its {slots} drawn from the lists and its % drawn as digits."""
    slots = lexicon()["slots"] | lexicon()["off_slots"]
    while "{" in template:
        before, _, rest = template.partition("{")
        name, _, after = rest.partition("}")
        template = before + rng.choice(slots[name]) + after
    return "".join(str(rng.randint(1, 9)) if letter == "%" else letter for letter in template)


def _stop(rng: random.Random, sentence: str) -> str:
    if sentence[-1] in ".?!:":
        return sentence
    return sentence + rng.choice([".", ".", ".", "", " ", "!", "...", ","])


def _noise(rng: random.Random, text: str, cues: Sequence[str] | frozenset[str]) -> str:
    """Typing as it is: careless case, missing apostrophes, swapped, lost and doubled letters."""
    carelessness = rng.choice([0.0, 0.0, 0.0, 0.02, 0.04, 0.09])
    words = [_typo(rng, word) if rng.random() < carelessness else word for word in text.split()]
    text = " ".join(words)
    style = rng.random()
    if style < 0.25:
        return text.lower()
    if style < (0.33 if "anger" in cues else 0.265):
        return text.upper()
    if style < 0.35:
        return text.replace("'", "").replace(",", "")
    return text[:1].upper() + text[1:]


def _typo(rng: random.Random, word: str) -> str:
    if len(word) < 4 or not word.isalpha():
        return word
    at = rng.randrange(1, len(word) - 1)
    return rng.choice(
        [
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + rng.choice("aeiornts") + word[at + 1 :],
        ]
    )
