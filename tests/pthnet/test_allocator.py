"""Freed memory is reused, which page faults tell."""

import platform
import subprocess
import sys

import pytest

FAULTS_OF_TWENTY_TENSORS = """
import resource, sys, torch
from pthnet.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def twenty():
    for _ in range(20):
        torch.ones(40 << 18)  # 40 MB: above what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(-twenty() + twenty())
"""


def faults(how: str) -> int:
    program = [sys.executable, "-c", FAULTS_OF_TWENTY_TENSORS, how]
    return int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    pages = 40 * 256  # of one tensor
    assert faults("leave") - faults("keep") > 15 * pages
