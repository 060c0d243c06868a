"""What can go wrong in the router.

RouterError
├── BadArtifact      a file of a saved router is missing, damaged or not what the manifest says
├── VersionMismatch  the folder was written in a format this version does not read
├── WrongEmbedder    the router was fitted on vectors of another embedder than the task's
└── NoEmbedder       the embedder cannot be had here
"""


class RouterError(Exception):
    """The router cannot be used, and the message says why in one line."""


class BadArtifact(RouterError):
    """A file of a saved router is missing, damaged or not what the manifest says."""


class VersionMismatch(RouterError):
    """The folder was written in a format this version does not read."""


class WrongEmbedder(RouterError):
    """The router was fitted on vectors of another embedder than the task's."""


class NoEmbedder(RouterError):
    """The embedder cannot be had here: a package is missing, or is not the known one."""
