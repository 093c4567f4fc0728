"""The exact binomial test, one-sided. Without scipy.stats, which takes half a second to import in every process."""

from scipy.special import betainc


def at_least(k: int, n: int, p: float) -> float:
    """Return P(X >= k) for X ~ Bin(n, p): the p-value of `k of n` against "more than p". 0 <= k <= n."""
    return float(betainc(k, n - k + 1, p)) if k else 1.0
