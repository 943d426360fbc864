"""What can go wrong in a way that a person can mend, sorted by what they can do about it.

Every message is one line that says what was wanted, what came, and what to do. The command line prints it alone,
without a traceback, and exits with the class's `exit_code`.
"""


class UnlearningError(Exception):
    """Base of every error that the tool explains; exit code 1."""

    exit_code = 1


class UsageError(UnlearningError, ValueError):
    """The request itself cannot be served as written: change the request."""

    exit_code = 2


class DataError(UnlearningError):
    """A data set or manifest does not hold what it says: change the data."""


class ModelError(UnlearningError):
    """A model cannot be trusted, or does not fit: change the model."""


class StorageError(UnlearningError):
    """The object store did not do what was asked: mend the store, its address or the keys."""


class TrackingError(UnlearningError):
    """MLflow did not do what was asked: mend the server or its address."""


class LedgerError(UnlearningError):
    """The ledger could not be read or written, or does not hold what its evidence says: mend it, or restore it."""


class PipelineError(UnlearningError):
    """A pipeline run ended before its end: read the stage's own error, mend it and run again."""


class ClusterError(UnlearningError):
    """Kubeflow Pipelines did not do what was asked: mend its address, the token or what it may do."""
