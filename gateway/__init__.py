"""The OpenAI-compatible service: claims a task, asks student or teacher, records every fallback."""
