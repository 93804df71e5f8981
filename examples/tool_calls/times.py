"""Times of the day as people say them: "half past six", "seven thirty", "quarter to nine in the evening"."""

from __future__ import annotations

from values import Pool, Value, number_words

HOURS = range(5, 22)
MINUTES = (0, 10, 15, 20, 30, 45)
NOON = 12


def spoken_times(hour: int, minute: int) -> tuple[str, ...]:
    """Returns the ways to say a time without the part of the day.

    Args:
        hour: Hour on a clock face, 1 to 12.
        minute: One of `MINUTES`.
    """
    this, following = number_words(hour), number_words(hour % 12 + 1)
    digits = f"{hour}:{minute:02d}"
    if minute == 0:
        return this, f"{this} o'clock", digits
    plain = f"{this} {number_words(minute)}"
    relative = {
        10: f"ten past {this}",
        15: f"quarter past {this}",
        20: f"twenty past {this}",
        30: f"half past {this}",
        45: f"quarter to {following}",
    }[minute]
    return plain, relative, digits


def day_parts(hour: int) -> tuple[str, ...]:
    """Returns what may follow a spoken time; before noon it may be nothing, later the part of the day is said."""
    if hour < NOON:
        return "", "", " am", " in the morning"
    return (" pm", " in the afternoon") if hour < 18 else (" pm", " in the evening")


def is_reserved(hour: int, minute: int) -> bool:
    """Tells whether a time of the day is kept for validation and test: about one in four, in every hour."""
    return (hour + MINUTES.index(minute)) % 4 == 0


def clock_times() -> Pool:
    """Returns every time of the day with every way to say it, written as HH:MM on a 24-hour clock."""
    seen, held_out = [], []
    for hour in HOURS:
        for minute in MINUTES:
            pool = held_out if is_reserved(hour, minute) else seen
            for spoken in spoken_times((hour - 1) % 12 + 1, minute):
                pool += [Value(spoken + part, f"{hour:02d}:{minute:02d}") for part in day_parts(hour)]
    return Pool(tuple(seen), tuple(held_out))


TIMES = clock_times()
