"""Clusters of samples by their scores: a Gaussian mixture, found by expectation and maximisation.

Method: Dempster, Laird, Rubin, Maximum likelihood from incomplete data via the EM algorithm, Journal of the Royal
Statistical Society B 39, 1977; first centres: Arthur, Vassilvitskii, k-means++, 2007.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STARTS = 4
"""Fits from different first centres, of which the likeliest counts."""
MAX_STEPS = 200
TOLERANCE = 1e-6
"""A fit ends when a step raises the mean log likelihood by less."""
FLOOR = 1e-3
"""Added to the variances of standardised points, so that no cluster shrinks to a single point."""
_GRID = 512


@dataclass(frozen=True)
class Mixture:
    """K Gaussians over D scores, from the one of lowest scores (0) to the one of highest."""

    weights: Floats
    """(K,), of sum 1."""
    means: Floats
    """(K, D)."""
    covariances: Floats
    """(K, D, D)."""

    def assign(self, points: Floats) -> NDArray[np.int64]:
        """The likeliest cluster of each of the points (N, D)."""
        logs = _log_densities(points, self.weights, self.means, self.covariances)
        return np.asarray(logs.argmax(axis=1), np.int64)

    def distances(self, points: Floats, cluster: int) -> Floats:
        """Mahalanobis distances (N,) of points (N, D) from the middle of a cluster."""
        away = points - self.means[cluster]
        squares = np.einsum("nd,nd->n", away, np.linalg.solve(self.covariances[cluster], away.T).T)
        return np.asarray(np.sqrt(squares), np.float64)

    def density(self, values: Floats, axis: int) -> Floats:
        """Of the whole mixture along one score, at `values` (N,)."""
        variances = self.covariances[:, axis, axis]
        squares = (values[:, None] - self.means[:, axis]) ** 2 / variances
        return np.asarray((np.exp(-squares / 2) / np.sqrt(2 * np.pi * variances)) @ self.weights, np.float64)

    def valley(self, axis: int) -> tuple[float, float]:
        """Where, along one score, the mixture is thinnest between the worst cluster and the next, and how thin: its
        density there over that of the lower of the two peaks. 1 where there is no valley."""
        low, high = self.means[:2, axis]
        if not low < high:
            return float(low), 1.0
        between = np.linspace(low, high, _GRID)
        density = self.density(between, axis)
        deepest = int(density.argmin())
        peak = min(density[: deepest + 1].max(), density[deepest:].max())
        return float(between[deepest]), float(density[deepest] / peak)


def fit(points: Floats, clusters: int, seed: int) -> Mixture:
    """The mixture of `clusters` Gaussians of full covariance that makes `points` (N, D) likeliest.

    The same points and seed give the same mixture; clusters are ordered by the sum of their standardised means, so
    that their numbers keep their meaning. Raises `ValueError` where there are fewer different points than clusters.
    """
    if len(np.unique(points, axis=0)) < clusters:
        raise ValueError(f"a mixture of {clusters} clusters needs as many different points")
    centre, spread = points.mean(axis=0), points.std(axis=0)
    spread[spread == 0] = 1.0
    scaled = (points - centre) / spread
    rng = np.random.default_rng(seed)
    _, weights, means, covariances = max(
        (_climb(scaled, _first_centres(scaled, clusters, rng)) for _ in range(STARTS)), key=lambda found: found[0]
    )
    order = np.argsort(means.sum(axis=1), kind="stable")
    return Mixture(
        weights[order], means[order] * spread + centre, covariances[order] * spread[:, None] * spread[None, :]
    )


def _first_centres(points: Floats, clusters: int, rng: np.random.Generator) -> Floats:
    """Points drawn one after the other, each with a chance that grows with its squared distance from those before."""
    centres = [points[rng.integers(len(points))]]
    nearest = np.full(len(points), np.inf)
    for _ in range(clusters - 1):
        nearest = np.minimum(nearest, ((points - centres[-1]) ** 2).sum(axis=1))
        centres.append(points[rng.choice(len(points), p=nearest / nearest.sum())])
    return np.stack(centres)


def _climb(points: Floats, centres: Floats) -> tuple[float, Floats, Floats, Floats]:
    """Mean log likelihood, weights, means and covariances, from `centres` on to the next maximum."""
    distances = ((points[:, None] - centres) ** 2).sum(axis=2)
    shares = np.eye(len(centres))[distances.argmin(axis=1)]
    likelihood, before = -np.inf, -np.inf
    for _ in range(MAX_STEPS):
        weights, means, covariances = _maximise(points, shares)
        logs = _log_densities(points, weights, means, covariances)
        highest = logs.max(axis=1, keepdims=True)
        shares = np.exp(logs - highest)
        total = shares.sum(axis=1, keepdims=True)
        shares /= total
        before, likelihood = likelihood, float((highest + np.log(total)).mean())
        if likelihood - before < TOLERANCE:
            break
    return likelihood, weights, means, covariances


def _maximise(points: Floats, shares: Floats) -> tuple[Floats, Floats, Floats]:
    counts = shares.sum(axis=0) + 1e-9
    means = shares.T @ points / counts[:, None]
    away = points[:, None] - means
    covariances = np.einsum("nk,nki,nkj->kij", shares, away, away, optimize=True) / counts[:, None, None]
    return counts / counts.sum(), means, covariances + FLOOR * np.eye(points.shape[1])


def _log_densities(points: Floats, weights: Floats, means: Floats, covariances: Floats) -> Floats:
    """(N, K) logarithms of weight times density, less a constant."""
    lower = np.linalg.cholesky(covariances)
    away: NDArray[Any] = points[:, None] - means
    whitened = np.stack([np.linalg.solve(lower[k], away[:, k].T) for k in range(len(means))])
    volumes = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
    logs: Floats = (np.log(weights) - volumes - 0.5 * (whitened**2).sum(axis=1).T).astype(np.float64)
    return logs
