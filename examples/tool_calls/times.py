"""Times on the clock face as people say them: "half past six", "seven thirty", "quarter to nine", "ten o'clock"."""

from __future__ import annotations

from values import Pool, Split, Value, number_words

HOURS = range(5, 13)
MINUTES = (0, 15, 30, 45)


def spoken_times(hour: int, minute: int) -> tuple[str, ...]:
    """Returns the ways to say a time.

    Args:
        hour: Hour on the clock face, 1 to 12.
        minute: One of `MINUTES`.
    """
    this, following = number_words(hour), number_words(hour % 12 + 1)
    digits = f"{hour}:{minute:02d}"
    if minute == 0:
        return this, f"{this} o'clock", digits
    relative = {15: f"quarter past {this}", 30: f"half past {this}", 45: f"quarter to {following}"}[minute]
    return f"{this} {number_words(minute)}", relative, digits


def split_of(hour: int, minute: int) -> Split:
    """Tells which split a time is for: of every hour one time in four is reserved, up to 8:00 for validation."""
    if (hour + MINUTES.index(minute)) % 4:
        return "train"
    return "val" if hour <= 8 else "test"


def clock_times() -> Pool:
    """Returns every time with every way to say it, written as HH:MM, the hour as on the clock face."""
    values: dict[Split, tuple[Value, ...]] = {"train": (), "val": (), "test": ()}
    for hour in HOURS:
        for minute in MINUTES:
            said = (Value(spoken, f"{hour:02d}:{minute:02d}") for spoken in spoken_times(hour, minute))
            values[split_of(hour, minute)] += tuple(said)
    return Pool(values)


TIMES = clock_times()
