"""What can go wrong in the router.

RouterError
├── BadArtifact      a file of a saved router is missing, damaged or not what the manifest says
└── VersionMismatch  the folder was written in a format this version does not read
"""


class RouterError(Exception):
    """The router cannot be used, and the message says why in one line."""


class BadArtifact(RouterError):
    """A file of a saved router is missing, damaged or not what the manifest says."""


class VersionMismatch(RouterError):
    """The folder was written in a format this version does not read."""
