"""Decide, from text and numbers alone, whether the student's answer may be served."""
