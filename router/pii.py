"""Personal data and secrets in a text: where they are, and which of them an answer holds that were
not in the request, as a student may have memorised them from its training rows.

Every expression starts at a word boundary and repeats within bounds, so that the time grows with
the length of the text and no text can make it explode.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

PII = Literal["email", "phone", "iban", "card", "ssn", "ip", "secret"]

_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@([A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8})"
)
_PHONE = re.compile(
    r"(?<![\w+.-])(?<!\d )(?:"
    r"\+\d(?:[ ().\-/]{0,2}\d){7,14}"  # international
    r"|\(?[2-9]\d{2}\)?[ .-]?[2-9]\d{2}[ .-]\d{4}"  # North America
    r"|\(?0{1,2}[1-9]\d{0,5}\)?(?:[ /-]\d{2,9}){1,4}"  # national, with a trunk zero
    r")(?![\w])"
)
_IBAN = re.compile(r"(?<![^\W_])[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]){11,30}")
_CARD = re.compile(r"(?<![\w.])(?<!\d[ -])\d(?:[ -]?\d){12,18}(?!\w)")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}([ -])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\w)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){3,7}(?![\w:])")
_SECRET = re.compile(
    r"(?<![\w-])(?:"
    r"sk-[\w-]{20,200}"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}"
    r"|github_pat_\w{22,255}"
    r"|glpat-[\w-]{20,200}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}(?!\w)"
    r"|AIza[\w-]{35}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,250}"
    r"|hf_[A-Za-z0-9]{30,60}"
    r"|[rs]k_live_[A-Za-z0-9]{20,250}"
    r"|eyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{8,4000}"
    r"|-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY-----"
    r"(?:(?:\s|\\n){0,2}[A-Za-z0-9+/=]{1,80}){0,200}"
    r"(?:(?:\s|\\n){0,2}-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY-----)?"
    r")"
)
#: What the slower expressions need at least: seven digits close together, an address's dot.
_DIGITS = re.compile(r"\d(?:\W{0,3}\d){6}")
_DOTTED = re.compile(r"\d\.\d")
#: domains nobody has an address at (RFC 2606, 6761)
_NOWHERE = re.compile(r"(?:\A|\.)(?:example(?:\.(?:com|net|org))?|invalid|test|localhost)\Z")
#: how first digits of payment cards look
_ISSUER = re.compile(r"3[04-9]|4|5[0-8]|6|2[2-7]")
#: IBAN length by country (SWIFT registry)
_IBAN_LENGTH = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}


@dataclass(frozen=True, slots=True)
class Found:
    """``start`` and ``end`` of a value in the text, and the form in which values are compared:
    case and separators do not count."""

    start: int
    end: int
    value: str


def find(text: str, kind: PII) -> Iterator[Found]:
    """The values of one kind in a text, from left to right."""
    return _FINDERS[kind](text)


def leaks(answer: str, request: str, kinds: Collection[PII] = ()) -> Iterator[PII]:
    """The kinds of personal data (none given: all) of which the answer holds a value that the
    request does not hold, in whatever spelling."""
    given = ""
    for kind in kinds or get_args(PII):
        found = {each.value for each in find(answer, kind)}
        if found and not given:
            given = request.casefold() + "\n" + _squeezed(request)
        if any(value not in given for value in found):
            yield kind


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (payment cards)."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        digit = int(char) * (1 + place % 2)
        total += digit - 9 if digit > 9 else digit
    return total % 10 == 0


def iban_checks(iban: str) -> bool:
    """Whether a compact, upper-case IBAN has its country's length and the right check digits."""
    if _IBAN_LENGTH.get(iban[:2]) != len(iban):
        return False
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def _squeezed(text: str) -> str:
    return re.sub(r"[ ()\-/.\u00a0]", "", text).casefold()


def _found(match: re.Match[str], value: str) -> Found:
    return Found(match.start(), match.end(), value)


def _emails(text: str) -> Iterator[Found]:
    for match in _EMAIL.finditer(text) if "@" in text else ():
        if not _NOWHERE.search(match[1].lower()):
            yield _found(match, _squeezed(match[0]))


def _phones(text: str) -> Iterator[Found]:
    for match in _PHONE.finditer(text) if _DIGITS.search(text) else ():
        digits = re.sub(r"\D", "", match[0])
        if 9 <= len(digits) <= 15 and digits.isascii():
            # without country code and trunk zero, which are written or not
            yield _found(match, digits[-8:])


def _ibans(text: str) -> Iterator[Found]:
    for match in _IBAN.finditer(text):
        # what follows may be the next word
        length = _IBAN_LENGTH.get(match[0][:2].upper(), 0)
        ends = [at for at, char in enumerate(match[0], 1) if char != " "][:length]
        compact = match[0].replace(" ", "").upper()[:length]
        if compact and compact.isascii() and iban_checks(compact):
            yield Found(match.start(), match.start() + ends[-1], compact.casefold())


def _cards(text: str) -> Iterator[Found]:
    for match in _CARD.finditer(text) if _DIGITS.search(text) else ():
        digits = re.sub(r"[ -]", "", match[0])
        if digits.isascii() and _ISSUER.match(digits) and luhn(digits) and len({*digits}) > 1:
            yield _found(match, digits)


def _ssns(text: str) -> Iterator[Found]:
    for match in _SSN.finditer(text) if _DIGITS.search(text) else ():
        yield _found(match, re.sub(r"\D", "", match[0]))


def _ips(text: str) -> Iterator[Found]:
    patterns = [_IPV4] if _DOTTED.search(text) else []
    for pattern in [*patterns, _IPV6] if text.count(":") > 2 else patterns:
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            if not address.is_loopback and not address.is_unspecified:
                yield _found(match, match[0].casefold())


def _secrets(text: str) -> Iterator[Found]:
    for match in _SECRET.finditer(text):
        yield _found(match, _squeezed(match[0]))


_FINDERS: dict[PII, Callable[[str], Iterator[Found]]] = {
    "email": _emails,
    "phone": _phones,
    "iban": _ibans,
    "card": _cards,
    "ssn": _ssns,
    "ip": _ips,
    "secret": _secrets,
}
