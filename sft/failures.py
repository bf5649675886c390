"""What the machine refuses, in words: memory that ran out, a disk that is full, files without the right to them.

Libraries wrap these in errors of their own, so they are known by what they say as well.
"""

import errno
import os
from pathlib import Path

from sft.errors import RunError

_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_NO_SPACE = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", "iostream error")
_READ_ONLY = ("Read-only file system", "Permission denied")


def told(error: BaseException, step: int, folder: Path) -> RunError | None:
    """The machine's refusal at a step of the training in this run folder as the user's error; None for any other."""
    if no_memory(error):
        return RunError(
            f"Out of memory at step {step}.",
            "Lower per_device_train_batch_size (gradient_accumulation_steps makes up for it) or max_length, or take a "
            "smaller model; then start it as a new run. Where another program took the memory, resume.",
        )
    if full := disk_full(error):
        return RunError(f"The disk is full at step {step}: {full}", "Free some space, then resume the run.")
    if _has_number(error, errno.EROFS, errno.EACCES, errno.EPERM) or _says(error, _READ_ONLY):
        if os.access(folder, os.W_OK):  # so it is something else, such as the model
            return RunError(
                f"A file cannot be used at step {step}: {error}", "Give yourself the right to it, then resume the run."
            )
        return RunError(
            f"The run's folder cannot be written at step {step}: {error}", "Make it writable, then resume the run."
        )
    return None


def no_memory(error: BaseException) -> bool:
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or _says(error, _NO_MEMORY)


def disk_full(error: BaseException | None) -> BaseException | None:
    """The error that says so: this one, or one that it came of, for torch stumbles over what it could not write."""
    if error is None or _has_number(error, errno.ENOSPC, errno.EDQUOT) or _says(error, _NO_SPACE):
        return error
    return disk_full(error.__cause__ or (None if error.__suppress_context__ else error.__context__))


def _has_number(error: BaseException, *numbers: int) -> bool:
    return isinstance(error, OSError) and error.errno in numbers


def _says(error: BaseException, phrases: tuple[str, ...]) -> bool:
    return any(phrase in str(error) for phrase in phrases)
