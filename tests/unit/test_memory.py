"""Freed arrays leave the process."""

import platform
import subprocess
import sys

import pytest

GROWN = """
import sys
import numpy as np
from sr_core.memory import return_large_arrays
if sys.argv[1] == "return":
    assert return_large_arrays()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
# a freed array of 30 MB teaches glibc to keep those of 20 MB
np.ones(30 << 20, np.uint8)
many = [np.ones(20 << 20, np.uint8) for _ in range(10)]
last = np.ones(1 << 20, np.uint8)
before = resident()
del many
print((before - resident()) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_arrays_go_back_to_the_system():
    def freed(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", GROWN, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert freed("return") >= 195
    assert freed("keep") < 195
