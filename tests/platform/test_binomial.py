"""The exact binomial test beside SciPy's."""

import pytest
from everline.platform.binomial import at_least
from scipy.stats import binomtest


@pytest.mark.parametrize("n", [0, 1, 5, 48, 200])
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_is_scipys_to_the_last_bit(n: int, p: float) -> None:
    for k in range(n + 1):
        wanted = float(binomtest(k, n, p, alternative="greater").pvalue) if n else 1.0
        assert at_least(k, n, p) == wanted, k
