"""Logistic regression by scikit-learn, for stages/probe's own solver.

    pip install scikit-learn
    python tests/reference/probe_logistic.py > tests/golden/probe_logistic.txt

Prints the data, one example a line (`row label x0 x1 x2`), then the solutions
(`solution C intercept w0 w1 w2`). Features are standardised, as the stage does before it fits.
"""

import argparse

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()

rng = np.random.default_rng(0)
n = 60
x = rng.normal(size=(n, 3)) * [1.0, 5.0, 0.2] + [0.0, -3.0, 1.0]
x[:, 2] += 0.05 * x[:, 1]  # correlated columns
log_odds = 1.5 * x[:, 0] - 0.4 * (x[:, 1] + 3.0) - 0.8
y = rng.random(n) < 1.0 / (1.0 + np.exp(-log_odds))
x = np.round(x, 6)

print(f"# made by tests/reference/probe_logistic.py with scikit-learn {sklearn.__version__}")
for label, row in zip(y, x):
    print("row", int(label), *(f"{value:.6f}" for value in row))
scaled = StandardScaler().fit_transform(x)
for c in [0.001, 0.1, 1.0, 100.0]:
    probe = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(scaled, y)
    print("solution", c, f"{probe.intercept_[0]:.9f}", *(f"{weight:.9f}" for weight in probe.coef_[0]))
