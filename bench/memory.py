"""What keeps glibc's malloc from costing page faults, for PyTorch's side as for ours: large blocks stay with the process, and
memory comes in huge pages. Both are read when a program starts, so that setting them in a running one changes nothing."""

import os
import sys

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
STARTED = "HIERSAE_BENCH_TUNED"   # set once the program runs with these settings


def start_tuned():
    """Starts this program again with these settings. Elsewhere than on Linux they are nobody's."""
    if sys.platform == "linux" and STARTED not in os.environ:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | TUNED | {STARTED: "1"})
