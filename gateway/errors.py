"""Every error the gateway can answer with, and the OpenAI envelope they become.

GatewayError
├── InvalidRequest        400
├── InvalidKey            401
├── Forbidden             403
├── UnknownModel          404
├── UnknownEndpoint       404
├── NotFound              404
├── MethodNotAllowed      405
├── BodyTooLarge          413
├── RateLimited           429
├── InsufficientQuota     429  a budget is spent
├── UpstreamRefused       4xx or 5xx, as the upstream said
├── UpstreamError         502  the upstream answered, but not usably
├── UpstreamUnavailable   503  nobody could answer
├── KeysUnknown           503  keys cannot be checked yet
├── StoreAway             503  the database is away
└── UpstreamTimeout       504

Outside HTTP: ConfigError (a bad YAML file), BundleError (a bundle that must not serve),
StoreError (the database refuses).
"""

from typing import Any


class RetortError(Exception):
    """Something went wrong, and the message says what and where in one line."""


class ConfigError(RetortError):
    """The configuration file cannot be used."""


class BundleError(RetortError):
    """A bundle is missing, corrupt, or does not fit what would serve it."""


class StoreError(RetortError):
    """The database cannot be used."""


class GatewayError(RetortError):
    """An error with a place in the OpenAI envelope.

    ``retry`` False sends ``x-should-retry: false``: the official clients retry 408, 409, 429 and
    every 5xx twice by default, which cannot help where the cause will not go away by itself.
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = "internal_error"
    retry: bool | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status

    def envelope(self) -> dict[str, Any]:
        """The JSON body, with all four keys the OpenAI clients look for."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequest(GatewayError):
    status, type, code, retry = 400, "invalid_request_error", "invalid_request", False


class InvalidKey(GatewayError):
    status, type, code, retry = 401, "invalid_request_error", "invalid_api_key", False


class Forbidden(GatewayError):
    status, type, code, retry = 403, "invalid_request_error", "forbidden", False


class UnknownModel(GatewayError):
    status, type, code, retry = 404, "invalid_request_error", "model_not_found", False


class UnknownEndpoint(GatewayError):
    status, type, code, retry = 404, "invalid_request_error", "unknown_url", False


class NotFound(GatewayError):
    """What the request names is not there, or is another caller's."""

    status, type, code, retry = 404, "invalid_request_error", "not_found", False


class MethodNotAllowed(GatewayError):
    status, type, code, retry = 405, "invalid_request_error", "method_not_allowed", False


class BodyTooLarge(GatewayError):
    status, type, code, retry = 413, "invalid_request_error", "request_too_large", False


class RateLimited(GatewayError):
    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class InsufficientQuota(GatewayError):
    status, type, code, retry = 429, "insufficient_quota", "insufficient_quota", False


class KeysUnknown(GatewayError):
    status, type, code, retry = 503, "server_error", "keys_unknown", True


class UpstreamRefused(GatewayError):
    """The upstream answered with an error; its status, type and code are passed on."""

    def __init__(self, error: dict[str, Any], *, status: int, headers: dict[str, str]) -> None:
        super().__init__(
            str(error.get("message")), param=error.get("param"), status=status, headers=headers
        )
        self.type = str(error.get("type"))
        self.code = error.get("code")


class UpstreamError(GatewayError):
    status, type, code = 502, "server_error", "upstream_error"


class UpstreamUnavailable(GatewayError):
    status, type, code = 503, "server_error", "upstream_unavailable"


class StoreAway(GatewayError):
    """The database cannot be asked now; the same request may succeed later."""

    status, type, code, retry = 503, "server_error", "store_unavailable", True


class UpstreamTimeout(GatewayError):
    status, type, code = 504, "server_error", "upstream_timeout"
