"""The rate of a device."""

from __future__ import annotations

from stnode.folder.rates import Rate

MIB = 1 << 20


def test_a_busy_device_is_measured() -> None:
    rate = Rate()
    rate.asked(40 * MIB, 0.0)
    for step in range(1, 21):
        rate.over(MIB, step * 0.1, arrived=True)
    assert abs(rate.bytes_per_s - 10 * MIB) < MIB / 10


def test_waiting_between_bursts_does_not_count() -> None:
    rate = Rate()
    for burst in range(10):
        began = burst * 1000.0
        rate.asked(2 * MIB, began)
        rate.over(MIB, began + 0.1, arrived=True)
        rate.over(MIB, began + 0.2, arrived=True)
    assert abs(rate.bytes_per_s - 10 * MIB) < MIB / 10


def test_a_trickle_says_nothing() -> None:
    rate = Rate()
    for step in range(1000):
        rate.asked(1000, step * 1.0)
        rate.over(1000, step + 0.9, arrived=True)
    assert rate.bytes_per_s == 0


def test_what_never_came_is_no_speed_and_a_change_is_followed() -> None:
    rate = Rate()
    rate.asked(100 * MIB, 0.0)
    rate.over(10 * MIB, 1.0, arrived=True)
    assert rate.bytes_per_s == 10 * MIB
    rate.over(80 * MIB, 2.0, arrived=False)
    assert rate.bytes_per_s == 7 * MIB
    rate.over(10 * MIB, 3.0, arrived=True)
    assert 7 * MIB < rate.bytes_per_s < 10 * MIB
