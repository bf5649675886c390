"""What the machine refuses is told in words: by the errors that it really raises."""

import errno
import mmap
import os
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_tokenizer

from sft import failures

PETABYTE = 2**50


@pytest.mark.parametrize(
    "refused",
    [
        lambda: torch.empty(PETABYTE, dtype=torch.uint8),
        lambda: bytearray(2**62),
        lambda: mmap.mmap(-1, PETABYTE),
    ],
    ids=["torch", "Python", "the system"],
)
def test_memory_that_ran_out_is_told_with_what_to_change(refused):
    with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
        refused()
    told = str(failures.told(caught.value, 7, Path()))
    assert "Out of memory at step 7." in told and "per_device_train_batch_size" in told


@pytest.mark.parametrize(
    "write",
    [
        lambda: torch.save({"a": torch.randn(60_000)}, "/dev/full"),
        lambda: tiny_tokenizer(None).backend_tokenizer.save("/dev/full"),
    ],
    ids=["torch", "tokenizers"],
)
def test_a_full_disk_is_known_by_what_libraries_say_of_it(write):
    with pytest.raises(Exception) as caught:
        write()
    assert "The disk is full at step 7" in str(failures.told(caught.value, 7, Path()))


def test_a_full_disk_and_a_folder_without_rights_are_told_apart(tmp_path):
    with pytest.raises(OSError) as full, Path("/dev/full").open("wb") as file:
        file.write(b"x" * 100_000)
    assert "The disk is full at step 1" in str(failures.told(full.value, 1, tmp_path))
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))
    assert "The run's folder cannot be written at step 1" in str(failures.told(error, 1, tmp_path / "nobody's"))
    unreadable = str(
        failures.told(PermissionError(errno.EACCES, "Permission denied", "model.safetensors"), 1, tmp_path)
    )
    assert "A file cannot be used at step 1" in unreadable and "model.safetensors" in unreadable


def test_a_defect_of_ours_is_not_put_down_to_the_machine():
    assert failures.told(ValueError("shapes do not match"), 1, Path()) is None
    assert failures.told(FileNotFoundError(errno.ENOENT, "none", "adapter"), 1, Path()) is None
