"""Fit the coefficients of trtship.passes.gelu: the smallest largest |x * sigmoid(x p(x^2)) - GELU(x)|.

Lawson's reweighted least squares over Gauss-Newton steps. Prints the coefficients and the error over [-40, 40].
"""

from __future__ import annotations

import math

import numpy as np

TERMS, LIMIT, STEPS = 3, 25.0, 3000


def sigmoid(p: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(p, -700, 700)))


def main() -> None:
    x = np.linspace(1e-3, math.sqrt(LIMIT), 12001)
    tail = np.array([0.5 * math.erfc(t / math.sqrt(2)) for t in x])
    powers = np.stack([x ** (2 * i + 1) for i in range(TERMS)], axis=1)
    c = np.array([1.5957691, 0.0713548, *[0.0] * (TERMS - 2)])
    weight, best = np.ones_like(x), (math.inf, c)
    for _ in range(STEPS):
        s = sigmoid(-powers @ c)
        residual, slope = x * (tail - s), -x * s * (1 - s)
        root = np.sqrt(weight)
        c = c + 0.5 * np.linalg.lstsq(slope[:, None] * powers * root[:, None], residual * root, rcond=1e-14)[0]
        error = np.abs(x * (sigmoid(-powers @ c) - tail))
        best = min(best, (float(error.max()), c), key=lambda one: one[0])
        weight = np.clip(weight * (0.2 + error / error.max()) ** 0.4, 1e-5, None)
        weight /= weight.mean()
    y = np.linspace(-40, 40, 160001)
    u = np.minimum(y * y, LIMIT)
    found = y * sigmoid(y * sum(ci * u**i for i, ci in enumerate(best[1])))
    exact = np.array([t * 0.5 * math.erfc(-t / math.sqrt(2)) for t in y])
    print([float(one) for one in best[1]], np.abs(found - exact).max())


if __name__ == "__main__":
    main()
