"""Bytes to fields and back: requests, answers, events, and where a stream ends."""
