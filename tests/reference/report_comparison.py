"""Makes tests/golden/report_comparison.txt: what scipy says of small samples.

    pip install numpy==2.4.6 scipy==1.17.1
    python tests/reference/report_comparison.py > tests/golden/report_comparison.txt

Lines:
    mean values | mean, lower and upper end of its 95 % t-interval
    paired ours, theirs | mean difference, its t-interval, d_z, g_z, p of the paired t-test
    holm p-values | adjusted p-values
Lists are joined by commas.
"""

import argparse
import math

import numpy as np
from scipy import stats

argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()

rng = np.random.default_rng(0)


def text(values):
    return ",".join(repr(float(value)) for value in np.atleast_1d(values))


def interval(values):
    return stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))


def holm(p_values):
    order = np.argsort(p_values, kind="stable")
    adjusted, worst = np.empty(len(p_values)), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


for n in [2, 3, 4, 5, 10, 30]:
    values = rng.normal(0.8, 0.05, n)
    print("mean", text(values), "|", text(np.mean(values)), text(interval(values)))

for n in [2, 3, 4, 8, 20]:
    theirs = rng.normal(0.8, 0.05, n)
    ours = theirs + rng.normal(0.02, 0.02, n)
    differences = ours - theirs
    d_z = np.mean(differences) / np.std(differences, ddof=1)
    # Hedges 1981, the exact correction for n - 1 degrees of freedom.
    df = n - 1
    correction = math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2) if df > 1 else 0.0
    g_z = correction * d_z
    p = stats.ttest_rel(ours, theirs).pvalue
    print("paired", text(ours), text(theirs), "|", text(np.mean(differences)), text(interval(differences)), text(d_z), text(g_z), text(p))

for p_values in [[0.01], [0.04, 0.01, 0.03], [0.5, 0.5, 0.9, 0.001], [0.02, 0.02, 0.02, 0.2, 0.0]]:
    print("holm", text(p_values), "|", text(holm(p_values)))
