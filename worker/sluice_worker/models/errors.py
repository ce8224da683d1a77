"""Why a model cannot be served, said once with the next step to take.

Raised by everything under ``models/``; the process that loads ends with the error's exit code,
which the operator turns into a reason, and its message as the last line.
"""

from typing import ClassVar

from sluice_api import names


class ModelError(Exception):
    """The model cannot be served. The message names the cause and the next step."""

    exit_code: ClassVar[int]


class ModelNotFound(ModelError):
    """There is nothing at the address."""

    exit_code = names.EXIT_MODEL_NOT_FOUND


class ModelDownloadFailed(ModelError):
    """It may exist, but it could not be fetched; trying again may help."""

    exit_code = names.EXIT_MODEL_DOWNLOAD_FAILED


class ModelRejected(ModelError):
    """It is there, but it is unsafe, damaged, or of a kind that is not served."""

    exit_code = names.EXIT_MODEL_REJECTED


class BadConfiguration(ModelError):
    """What was asked for contradicts itself or the model."""

    exit_code = names.EXIT_BAD_CONFIGURATION
