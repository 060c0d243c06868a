"""What the router reads of a student's answer."""

from typing import Any

import pytest

from gateway.draft import TOP_LOGPROBS, read_draft
from gateway.errors import UpstreamError


def body(*alternatives: Any) -> dict[str, Any]:
    token = {"token": "b", "logprob": -1.5, "top_logprobs": list(alternatives)}
    choice = {
        "message": {"content": "b"},
        "logprobs": {"content": [token]},
        "finish_reason": "stop",
    }
    return {"choices": [choice]}


def test_alternatives_come_with_their_names_the_likeliest_first() -> None:
    given = [{"token": name, "logprob": value} for name, value in (("b", -1.5), ("a", -0.5))]
    (token,) = read_draft(body(*given)).answer.tokens
    assert (token.top, token.names) == ((-0.5, -1.5), ("a", "b"))


def test_more_alternatives_for_the_client_do_not_change_what_the_router_sees() -> None:
    given = [{"token": f"t{k}", "logprob": -float(k)} for k in range(20)]
    (token,) = read_draft(body(*given)).answer.tokens
    (fewer,) = read_draft(body(*given[:TOP_LOGPROBS])).answer.tokens
    assert (token.top, token.names) == (fewer.top, fewer.names)
    assert len(token.top) == TOP_LOGPROBS


@pytest.mark.parametrize(
    "broken", [{"logprob": -1.0}, {"token": "a"}, {"token": "a", "logprob": {}}]
)
def test_alternatives_that_cannot_be_read_are_an_answer_that_cannot(broken: Any) -> None:
    with pytest.raises(UpstreamError):
        read_draft(body(broken))
