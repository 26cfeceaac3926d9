"""What keeps glibc's malloc from costing page faults, for PyTorch's side as for ours: large blocks stay with the process, and
memory comes in huge pages. Both are read when a program starts, so that setting them in a running one changes nothing."""

import os
import sys

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def start_tuned():
    """Starts this program again with these settings, unless it has them."""
    if any(os.environ.get(name) != value for name, value in TUNED.items()):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | TUNED)
