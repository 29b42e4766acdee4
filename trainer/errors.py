"""What can go wrong in a correct program that trains a student.

TrainerError
    DatasetError     the snapshot of the log
    ModelError       a model folder
    ManifestError    a folder's retort.json, or a file that it vouches for
    DivergedError    a loss that is no number any more
    MetricError      a user's own metric
    TooShortError    a run that a pilot would cost as much as
    TooLargeError    a step that does not fit into memory
    FullDiskError    weights that cannot be written
    EndpointError    a server that answers or scores
    ScaleError       one of several processes
"""


class TrainerError(Exception):
    """Base of this package's errors; the message says what to do next."""


class DatasetError(TrainerError):
    """Raised when the snapshot holds nothing, or nothing that one student can learn from."""


class ModelError(TrainerError):
    """Raised when a teacher or student folder cannot be used."""


class ManifestError(TrainerError):
    """Raised when a model folder is not what its ``retort.json`` says."""


class DivergedError(TrainerError):
    """Raised when a run's loss is infinite or no number."""


class MetricError(TrainerError):
    """Raised when a user's own metric fails or gives no number from 0 to 1."""


class TooShortError(TrainerError):
    """Raised when a run is so short that trying it on a part would save nothing."""


class TooLargeError(TrainerError):
    """Raised when a step takes more memory than there is; what was saved before is left."""


class FullDiskError(TrainerError):
    """Raised when weights cannot be written; what was saved before is left."""


class EndpointError(TrainerError):
    """Raised when a server does not answer, or not what was asked for; what came before is kept."""


class ScaleError(TrainerError):
    """Raised when processes of a run ended again and again; what was saved before is left."""
