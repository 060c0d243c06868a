"""Audits: a random sample of the student's answers, checked by the teacher off the request path."""
