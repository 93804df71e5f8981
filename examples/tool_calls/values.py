"""The values a request can mention: names, places, songs, things to buy, texts, numbers, lengths of time.

Every open-ended kind has values for training, others for validation and others again for test. Closed sets
(days, on and off, ways to travel, currencies) are the same everywhere. Most values begin with a common word:
after the quotation mark of the tool call a rare one falls into fragments that a small model cannot copy from the
request, and the task is to read requests, not to spell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "val", "test"]

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclass(frozen=True)
class Value:
    """One value: how it is said in the request and how it is written in the tool call."""

    spoken: str
    written: str | int


@dataclass(frozen=True)
class Pool:
    """The values of one kind for each split; `closed` kinds have the same values in all of them."""

    values: dict[Split, tuple[Value, ...]]
    closed: bool = False


def number_words(number: int) -> str:
    """Returns a number from 0 to 999 as it is said, for example "twenty one"."""
    if number >= 100:
        hundreds = f"{ONES[number // 100]} hundred"
        return f"{hundreds} and {number_words(number % 100)}" if number % 100 else hundreds
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")


def _copied(train: str, val: str, test: str) -> Pool:
    """Values that the tool call repeats as they were said, given as comma-separated lists."""

    def values(text: str) -> tuple[Value, ...]:
        return tuple(Value(entry.strip(), entry.strip()) for entry in text.split(","))

    return Pool({"train": values(train), "val": values(val), "test": values(test)})


def _with_article(train: str, val: str, test: str) -> Pool:
    """Values said with "a" or "an" and written without it."""

    def with_article(value: Value) -> Value:
        return Value(f"{'an' if value.spoken[0] in 'aeiou' else 'a'} {value.spoken}", value.written)

    copied = _copied(train, val, test)
    return Pool({split: tuple(map(with_article, values)) for split, values in copied.values.items()})


def _closed(*pairs: tuple[str, str]) -> Pool:
    values = tuple(Value(*pair) for pair in pairs)
    return Pool({"train": values, "val": values, "test": values}, closed=True)


def _numbers(train: Iterable[int], val: Iterable[int], test: Iterable[int], also: tuple[Value, ...] = ()) -> Pool:
    """Numbers said in words or transcribed as digits, and special ways to say some of the training ones."""

    def values(numbers: Iterable[int]) -> tuple[Value, ...]:
        return tuple(Value(spoken, n) for n in numbers for spoken in (number_words(n), str(n)))

    return Pool({"train": (*values(train), *also), "val": values(val), "test": values(test)})


def _durations() -> Pool:
    """Lengths of time such as "15 min", "2 h" or "30 s"; minutes are also said as parts of an hour."""

    def said(number: int, unit: str, written: str) -> tuple[Value, ...]:
        return tuple(Value(f"{n} {unit}", f"{number} {written}") for n in (number_words(number), str(number)))

    def values(minutes: Iterable[int], hours: Iterable[int], seconds: Iterable[int]) -> tuple[Value, ...]:
        return (
            *(value for n in minutes for value in said(n, "minutes", "min")),
            *(value for n in hours for value in said(n, "hours", "h")),
            *(value for n in seconds for value in said(n, "seconds", "s")),
        )

    fractions = (
        Value("half an hour", "30 min"),
        Value("a quarter of an hour", "15 min"),
        Value("three quarters of an hour", "45 min"),
        Value("an hour", "1 h"),
        Value("a minute", "1 min"),
    )
    train = values(
        (2, 3, 4, 5, 6, 8, 9, 10, 13, 14, 16, 20, 22, 25, 28, 40, 50, 55), (2, 3, 5, 6, 8), (10, 15, 20, 40, 45)
    )
    val = values((7, 12, 18, 35), (4,), (30,))
    test = values((11, 17, 24), (7,), (50,))
    return Pool({"train": train + fractions, "val": val, "test": test})


CONTACTS = _copied(
    "Anna, Ben, David, Martin, Peter, Sam, Victor, Tom, Mary, John, James, Robert, William, Thomas, "
    "Chris, Paul, Andrew, Jane, Sarah, Jack, Nick, Frank, Max, Adam, Luke, Jim, Jeff, Tim, Emily, Maria, "
    "Kim, Emma, Grace, Oliver, Mum, Aunt Laura",
    "Daniel, George, Michael, Scott, Matt, Anne, Dad",
    "Henry, Alice, Joseph, Simon, Elizabeth, Edward",
)
REGIONS = _copied(
    "London, Paris, Chicago, Oxford, Washington, Texas, Florida, India, Mexico, New York, San Diego, Los "
    "Angeles, Salt Lake City, St Louis, Canada, Germany, Spain, Italy, Egypt, England, Australia, Brazil, "
    "New Zealand, San Jose, Berlin, Dublin, Tokyo, Newton, Israel, Virginia",
    "Rome, Cambridge, New Orleans, France, China, Lincoln",
    "Boston, California, San Francisco, Japan, New Delhi, Madrid",
)
PLACES = _copied(
    "train station, museum, library, town hall, city park, old market, university, castle, nearest "
    "pharmacy, fire station, main square, bank, church, medical centre, river, bridge, public pool, "
    "nearest supermarket, zoo, airport, new theatre, book shop",
    "hospital, art gallery, nearest bakery, lake, pet shop, city centre",
    "post office, bus station, court house, old town, ice rink, golf club",
)
SONGS = _copied(
    "Silver River, Paper Moon, Golden Fields, Blue Lantern, Stay a While, Summer Roads, Northern Lights, "
    "Little Bird, Home Again, Walking on Sand, Empty Rooms, Red Kite, Black Velvet Sky, Last Train Home, "
    "Two Left Feet, Night Garden, Never Look Down, White Roses, Dancing in the Snow, Midnight Coffee",
    "Ocean Drive, Under the Bridge, Green Apples, Open Windows, Over the Hills",
    "Wild Honey, Seven Stars, Long Way Down, Winter Sun, Falling Leaves",
)
ARTISTS = _copied(
    "the Night Owls, the Lost Boys, Iron Garden, the Wanderers, Electric Foxes, Stone Circle, the Quiet "
    "Ones, Blue Harbour, the Paper Kites, City Lights Band, the Red Shoes, Little Thunder, the Old "
    "Sailors, Velvet Maps, Coral Sky",
    "the Sleepy Bears, the Postmen, the Green Umbrellas, the Tall Trees",
    "Winter Choir, Golden Rabbit, Southern Rain, Crystal Valley",
)
GOODS = _copied(
    "apples, light bulbs, bread rolls, bin bags, books, cards, plants, sweet potatoes, red onions, brown "
    "eggs, green peppers, paper plates, wine glasses, boxes of cereal, cans of beans, white candles, "
    "oranges, lemons, water bottles",
    "flowers, hot dogs, pies, ice creams, jam jars",
    "bags of rice, black pens, red apples, green beans, pears",
)
EVENTS = _with_article(
    "team meeting, doctor's appointment, book club meeting, job interview, budget review, driving lesson, "
    "vet visit, movie night, school concert, project review, phone call, math exam, work dinner, family "
    "lunch, science class, art class, test drive, dentist appointment, yoga class, parents' evening",
    "eye test, car inspection, staff training, video call, music lesson, swimming lesson",
    "board meeting, game night, flu shot, history exam, bank appointment",
)
TASKS = _copied(
    "water the plants, feed the cat, pay the rent, call the bank, take out the trash, buy stamps, pick up the kids, "
    "wash the car, book a table, check the oven, send the invoice, take my pills, charge the bike, clean the fridge, "
    "return the books, renew my passport, order pizza, lock the back door",
    "walk the dog, collect the parcel, buy flowers, cancel the gym, email the landlord",
    "pay the gas bill, fix the printer, clean the windows, empty the dishwasher",
)
MESSAGES = _copied(
    "I'm running late, dinner is ready, the train is delayed, I'm on my way, I will call back later, the "
    "meeting is over, I forgot my keys, we need more milk, I am stuck in traffic, happy birthday, the "
    "parcel has arrived, I can't come today, see you at the station, the kids are asleep, good luck with "
    "the exam, I love the present, my phone is broken",
    "I am at the airport, the bus broke down, the shop is closed, we won the game, we are at the beach",
    "lunch is ready, I will be home soon, I found your phone, I need a lift",
)
ROOMS = _copied(
    "living room, hall, library, front room, back garden, play room, music room, main bedroom, kitchen, "
    "bedroom, big attic, garage",
    "office, TV room, back room",
    "study, game room, front hall",
)

DAYS = _closed(
    ("tomorrow", "tomorrow"),
    ("today", "today"),
    *((f"on {day}", day) for day in "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
)
CURRENCIES = _closed(*((name, name) for name in "dollars euros pounds yen francs".split()))
STATES = _closed(("on", "on"), ("off", "off"))
TRAVEL_MODES = _closed(("by bike", "bike"), ("by car", "car"), ("by bus", "bus"), ("on foot", "foot"))

DURATIONS = _durations()
DEGREES = _numbers((14, 15, 16, 17, 19, 20, 22, 23, 25, 26), (18, 21, 24), (12, 13, 27))
PERCENTS = _numbers((5, 10, 15, 25, 30, 40, 45, 50, 65, 70, 75, 90), (20, 60), (35, 80))
AMOUNTS = _numbers(
    (5, 10, 12, 15, 18, 25, 30, 36, 40, 45, 50, 65, 70, 75, 90, 100, 120, 200, 250, 300),
    (20, 35, 80, 400),
    (22, 60, 85),
)
QUANTITIES = _numbers(
    (2, 3, 4, 6, 8, 10, 12, 15),
    (5, 9),
    (7, 11),
    also=(Value("a dozen", 12), Value("half a dozen", 6), Value("a couple of", 2)),
)
