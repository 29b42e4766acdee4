"""What can go wrong in a correct program that turns a checkpoint into a bundle.

QuantError
    SchemeError        a scheme this host cannot serve, or no scheme at all
    CalibrationError   the log holds no rows to calibrate on
    CompressionError   the model cannot be quantized, or its result not be served
    ToolError          a tool in an environment of its own cannot be set up, or fails
    BundleError        a folder that must not be served
    ComparisonError    two models that cannot be compared on this log
    AdviceError        a log that says too little of its traffic
"""


class QuantError(Exception):
    """Base of this package's errors; the message says what to do next."""


class SchemeError(QuantError):
    """Raised before any work when a scheme is unknown or has no kernel on this host."""


class CalibrationError(QuantError):
    """Raised when the log has no usable rows for this model."""


class CompressionError(QuantError):
    """Raised when a model cannot be quantized, or the engine does not serve the result."""


class ToolError(QuantError):
    """Raised when a tool's environment cannot be made or the tool fails; with its last lines."""


class BundleError(QuantError):
    """Raised when a folder is not a bundle that may be served, or cannot be published."""


class ComparisonError(QuantError):
    """Raised when two models cannot be compared on this log, or a judge does not judge."""


class AdviceError(QuantError):
    """Raised when the log says too little of its traffic to advise on."""
