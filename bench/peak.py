"""The speed of the machine's f32 products just now, which other tenants have a say in."""

import time


def peak_gflops(torch, size=2048, rounds=8):
    """Of torch's product of large square matrices: the best of a few, GFLOP/s."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times) / 1e9
