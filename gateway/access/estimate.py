"""What a request will use, guessed from its bytes before anybody has answered it. Only for those
under a limit or budget: nobody else's bytes are looked at."""

import re

from gateway.money.pricing import Usage

#: of JSON in English, with its keys; for other texts it is off by a factor of two, either way
BYTES_PER_TOKEN = 4
#: tokens of an answer whose request names no bound
ANSWER_TOKENS = 500
#: tokens of a file sent along in base64
FILE_TOKENS = 1000

# a quote inside a JSON string has a backslash before it, so these match keys only
_MAX_TOKENS = re.compile(
    rb'"(?:max_tokens|max_completion_tokens|max_output_tokens)"\s*:\s*(\d{1,9})'
)
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
_CHOICES = re.compile(rb'"n"\s*:\s*(\d{1,3})\b')
_FILE = re.compile(rb'(?:;base64,|"data"\s*:\s*")([A-Za-z0-9+/=]{1000,})')


def guess(raw: bytes) -> Usage:
    """Of a request's body. Not parsed: this runs before anything else looks at it."""
    files = size = 0
    if b"base64" in raw or b'"data"' in raw:
        for match in _FILE.finditer(raw):
            files += 1
            size += match.end(1) - match.start(1)
    named = [int(match[1]) for match in _MAX_TOKENS.finditer(raw)]
    choices = max((int(match[1]) for match in _CHOICES.finditer(raw)), default=1)
    return Usage(
        prompt=(len(raw) - size) // BYTES_PER_TOKEN + files * FILE_TOKENS,
        completion=(max(named) if named else ANSWER_TOKENS) * max(1, choices),
    )


def model_named(raw: bytes) -> str:
    """The model a request's body names, not parsed either; empty where it names none."""
    found = _MODEL.search(raw)
    return "" if found is None else found[1].decode("utf-8", "replace")
