"""Identifiers that sort by time and never collide across processes."""

import secrets
import time


def new_id(prefix: str) -> str:
    """``prefix-`` followed by 12 hex digits of milliseconds and 16 of randomness."""
    return f"{prefix}-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"
