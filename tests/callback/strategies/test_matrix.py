"""The smallest part of `make strategies`, for real."""

from __future__ import annotations

from benchmarks.strategies.__main__ import main


def test_one_process_and_two() -> None:
    single, two = main(["--only", "single process", "ddp x2"])
    for row in (single, two):
        assert row["ranks_equal"]
        assert row["resume_bitwise"]
        assert 0 < row["checkpoint_bytes"] < 400_000
    assert two["processes"] == 2
    # float32: sums in another order.
    assert abs(two["difference"]) < 2e-6
