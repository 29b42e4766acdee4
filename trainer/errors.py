"""What can go wrong in a correct program that trains a student.

TrainerError
    DatasetError     the snapshot of the log
    ModelError       a model folder
    ManifestError    a folder's retort.json, or a file that it vouches for
    DivergedError    a loss that is no number any more
    TooLargeError    a step that does not fit into memory
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


class TooLargeError(TrainerError):
    """Raised when a step takes more memory than there is; what was saved before is left."""


class ScaleError(TrainerError):
    """Raised when processes of a run ended again and again; what was saved before is left."""
