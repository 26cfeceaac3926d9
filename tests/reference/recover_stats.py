"""Makes tests/golden/recover_stats.txt: what scipy and scikit-learn say of 2x2 tables.

    pip install numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
    python tests/reference/recover_stats.py > tests/golden/recover_stats.txt

Lines:
    pair n11 n_parent n_child n | plug-in MI, corrected MI (bits), G, its p, Fisher's p, smallest expected cell, log odds
    bh p-values q-values
    copula MI (bits), parent magnitudes, child magnitudes
"""

import argparse

import numpy as np
from scipy import stats
from sklearn.metrics import mutual_info_score

argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()

rng = np.random.default_rng(0)


def text(values):
    return " ".join(repr(float(v)) for v in values)


def pair(n11, n_parent, n_child, n):
    table = np.array([[n11, n_parent - n11], [n_child - n11, n - n_parent - n_child + n11]])
    assert (table >= 0).all()
    mi_nats = mutual_info_score(None, None, contingency=table)
    # Miller-Madow, entropy by entropy: H + (m - 1) / 2N.
    madow = lambda cells: (np.count_nonzero(cells) - 1) / (2 * n)
    mi_mm = mi_nats + madow(table.sum(0)) + madow(table.sum(1)) - madow(table)
    degenerate = 0 in table.sum(0) or 0 in table.sum(1)
    if degenerate:
        g, p_g, expected = 0.0, 1.0, 0.0
    else:
        result = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood")
        g, p_g, expected = result.statistic, result.pvalue, result.expected_freq.min()
    p_fisher = 1.0 if degenerate else stats.fisher_exact(table).pvalue
    half = table + 0.5
    log_odds = np.log(half[0, 0] * half[1, 1] / (half[0, 1] * half[1, 0]))
    bits = np.log(2)
    print("pair", n11, n_parent, n_child, n, text([mi_nats / bits, mi_mm / bits, g, p_g, p_fisher, expected, log_odds]))


print("# made by tests/reference/recover_stats.py")
for case in [
    (30, 60, 40, 200), (12, 60, 40, 200), (3, 60, 40, 200), (0, 60, 40, 200), (40, 60, 40, 200), (40, 40, 40, 200),
    (1, 3, 4, 50), (0, 3, 4, 50), (3, 3, 4, 50), (4, 4, 4, 50), (2, 40, 3, 50), (45, 47, 48, 50),
    (0, 0, 4, 50), (0, 50, 0, 50), (4, 4, 50, 50), (1, 1, 1, 2), (0, 1, 1, 2),
    (20, 220, 25, 22000), (25, 220, 25, 22000), (1, 220, 25, 22000), (0, 220, 25, 22000), (700, 9000, 1700, 22000),
    (100, 1000, 100, 22000), (77, 1000, 100, 22000), (5, 1000, 100, 22000), (4, 11, 2000, 22000),
    (3000, 3500, 3100, 22000), (10, 100_000, 1_000, 10_000_000), (25, 100_000, 1_000, 10_000_000),
]:
    pair(*case)
for _ in range(12):
    n = int(rng.integers(30, 3000))
    p, q = rng.uniform(0.01, 0.6, 2)
    parent = rng.random(n) < p
    child = rng.random(n) < np.where(parent, min(1, q * rng.uniform(0.2, 3)), q)
    pair(int((parent & child).sum()), int(parent.sum()), int(child.sum()), n)

for p_values in [
    [0.01], [0.01, 0.04, 0.03, 0.005, 0.8], [0.2, 0.2, 0.2], [0.0, 1.0, 0.5, 1e-12],
    list(np.round(rng.random(25) ** 3, 6)),
]:
    print("bh", text(p_values), text(stats.false_discovery_control(p_values, method="bh")))

for rho, n in [(0.0, 200), (0.6, 200), (-0.8, 240)]:
    a, b = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], n).T
    a, b = np.exp(a).round(2).astype(np.float32), (b + 9).round(1).astype(np.float32)  # rounded: ties
    normal = lambda x: stats.norm.ppf(stats.rankdata(x) / (len(x) + 1))
    r = np.corrcoef(normal(a), normal(b))[0, 1]
    mi = -0.5 * np.log2(1 - r * r) - 1 / (2 * n * np.log(2))
    print("copula", text([mi]), text(a), text(b))
