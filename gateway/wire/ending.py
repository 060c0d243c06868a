"""Whether a stream that is passed through unread had its proper end.

A client takes a stream that simply stops for a whole one, so something must tell it. The bytes
are searched, not parsed: what marks an end cannot stand inside a JSON string, where its quotes
and line breaks would be escaped.
"""

import re

from gateway.errors import UpstreamError

_RESPONSE = rb'"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed|cancelled)|error)"'
_MESSAGE = rb'"type"\s*:\s*"(?:message_stop|error)"'
#: what a whole stream of the endpoint has in it; other streams are not judged, and completions
#: are by `gateway.wire.watched`, which can also begin them anew
_ENDINGS = {
    "/v1/responses": re.compile(_RESPONSE),
    "/v1/messages": re.compile(_MESSAGE),
}
#: longer than anything the patterns find
_CARRY = 80


def may_stream(raw: bytes) -> bool:
    """Whether the request may be for a stream. It is then not to be compressed, for its end could
    not be seen, and no error event could follow."""
    return b'"stream"' in raw


class Ending:
    """Watches the bytes of a stream, wherever they are cut."""

    __slots__ = ("_carry", "_pattern")

    def __init__(self, path: str) -> None:
        self._pattern = _ENDINGS.get(path)
        self._carry = b"\n"

    def watch(self, part: bytes) -> None:
        text = self._carry + part
        if self._pattern is not None and self._pattern.search(text):
            self._pattern = None
        self._carry = text[-_CARRY:]

    def check(self) -> None:
        """Raises UpstreamError where the stream stopped before its end."""
        if self._pattern is not None:
            raise UpstreamError("The teacher's stream broke off.", code="upstream_broken")

    @property
    def between_events(self) -> bool:
        """Whether an event may follow as it is."""
        return self._carry.endswith((b"\n\n", b"\n\r\n", b"\r\r"))
