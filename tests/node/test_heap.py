"""Memory of large blocks goes back to the system, whatever was allocated behind them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: Large blocks, each followed by a small one that stays. Prints by how many MiB the process has grown when the large ones are freed.
CODE = """
import ctypes, sys
from dss_api import heap
if sys.argv[1] == "apart":
    heap.keep_large_blocks_apart()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
def memory():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
libc.free(libc.malloc(16 << 20))  # raises glibc's own threshold
before, large = memory(), []
for _ in range(20):
    large.append(libc.malloc(4 << 20))
    libc.memset(large[-1], 1, 4 << 20)
    libc.memset(libc.malloc(100_000), 1, 100_000)
for block in large:
    libc.free(block)
print(memory() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these parameters")
@pytest.mark.parametrize(("how", "is_kept"), [("apart", False), ("default", True)])
def test_memory_of_large_blocks_goes_back(how: str, is_kept: bool) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, how], check=True, capture_output=True, text=True)
    assert (int(done.stdout) > 40) is is_kept
