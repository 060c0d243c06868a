"""What can go wrong between the queue and a promoted student.

RetrainError
├── TrafficError   recorded traffic that cannot be read; names file and line
├── LeakageError   near-identical prompts on both sides of the split
├── NightBusy      another night of the same task is at work
├── NightError     a step of a night cannot go on
├── ReplayError    logged traffic that cannot be replayed
├── StudentError   the student's environment, model or server cannot be used
└── TrainingError  the rows or the base model cannot be trained on
"""

from gateway.errors import RetortError


class RetrainError(RetortError):
    """The loop cannot go on, and the message says why in one line."""


class TrafficError(RetrainError):
    """Recorded traffic that cannot be read."""


class LeakageError(RetrainError):
    """Training and held-out rows are too alike for the evaluation to mean anything."""


class NightBusy(RetrainError):
    """Another night of the same task is at work."""


class NightError(RetrainError):
    """A step of a night cannot go on."""


class ReplayError(RetrainError):
    """Logged traffic that cannot be replayed."""


class StudentError(RetrainError):
    """The student's environment, model or server cannot be used."""


class TrainingError(RetrainError):
    """The rows or the base model cannot be trained on."""
