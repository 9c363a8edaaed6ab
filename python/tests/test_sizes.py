"""Amounts in messages."""

import pytest

from sdtune.sizes import sizes


@pytest.mark.parametrize(
    ("amounts", "texts"),
    [
        ((20_100_000, 23_400_000), ["20 MB", "23 MB"]),
        ((20_100_000, 20_400_000), ["20.1 MB", "20.4 MB"]),
        ((1_000, 4_100_000_000), ["0 MB", "4.1 GB"]),
        ((1_020_000_000, 1_024_000_000), ["1.020 GB", "1.024 GB"]),
        ((3_200_000_000_000, 22_000_000_000), ["3.2 TB", "22.0 GB"]),
        ((5, 5), ["0 MB", "0 MB"]),
    ],
)
def test_amounts_that_differ_read_differently(amounts, texts):
    assert sizes(*amounts) == texts
