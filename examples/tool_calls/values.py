"""The values a request can mention: names, places, songs, things to buy, texts, numbers, lengths of time.

Every open-ended kind has values used in training and others reserved for validation and test. Closed sets
(days, on and off, ways to travel) are the same everywhere: there are no others to reserve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
    """The values of one kind; `closed` kinds have the same values in training and in test."""

    seen: tuple[Value, ...]
    held_out: tuple[Value, ...]
    closed: bool = False


def number_words(number: int) -> str:
    """Returns a number from 0 to 999 as it is said, for example "twenty one"."""
    if number >= 100:
        hundreds = f"{ONES[number // 100]} hundred"
        return f"{hundreds} and {number_words(number % 100)}" if number % 100 else hundreds
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")


def _copied(seen: str, held_out: str) -> Pool:
    """Values that the tool call repeats as they were said, given as comma-separated lists."""

    def values(text: str) -> tuple[Value, ...]:
        return tuple(Value(entry.strip(), entry.strip()) for entry in text.split(","))

    return Pool(values(seen), values(held_out))


def _with_article(seen: str, held_out: str) -> Pool:
    """Values said with "a" or "an" and written without it."""

    def values(pool: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(
            Value(f"{'an' if value.spoken[0] in 'aeiou' else 'a'} {value.spoken}", value.written) for value in pool
        )

    copied = _copied(seen, held_out)
    return Pool(values(copied.seen), values(copied.held_out))


def _closed(*pairs: tuple[str, str]) -> Pool:
    values = tuple(Value(*pair) for pair in pairs)
    return Pool(values, values, closed=True)


def _numbers(seen: Iterable[int], held_out: Iterable[int], also: tuple[Value, ...] = ()) -> Pool:
    """Numbers said in words or transcribed as digits, and special ways to say some of the seen ones."""

    def values(numbers: Iterable[int]) -> tuple[Value, ...]:
        return tuple(Value(spoken, n) for n in numbers for spoken in (number_words(n), str(n)))

    return Pool((*values(seen), *also), values(held_out))


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
    seen = values(
        (2, 3, 4, 5, 6, 8, 9, 10, 13, 14, 16, 20, 22, 25, 28, 40, 50, 55), (2, 3, 5, 6, 8), (10, 15, 20, 40, 45)
    )
    held_out = values((7, 11, 12, 17, 18, 24, 35), (4, 7), (30, 50))
    return Pool(seen + fractions, held_out)


CONTACTS = _copied(
    "Anna, Ben, David, Martin, Peter, Sam, Victor, Tom, Mary, John, James, Robert, William, Thomas, "
    "Chris, Paul, Andrew, Jane, Sarah, Jack, Nick, Frank, Max, Adam, Luke, Jim, Jeff, Tim, Emily, Maria, "
    "Kim, Emma, Grace, Oliver, Mum, Aunt Laura",
    "Daniel, Henry, George, Alice, Michael, Joseph, Alex, Simon, Matt, Elizabeth, Anne, Edward, Dad",
)
REGIONS = _copied(
    "London, Paris, Chicago, Oxford, Washington, Texas, Florida, India, Mexico, New York, San Diego, Los "
    "Angeles, Salt Lake City, St Louis, Canada, Germany, Spain, Italy, Egypt, England, Australia, Brazil, "
    "New Zealand, San Jose, Berlin, Dublin, Tokyo, Newton, Israel, Virginia",
    "Rome, Boston, Cambridge, California, New Orleans, San Francisco, France, Japan, China, New Delhi, Lincoln, Madrid",
)
PLACES = _copied(
    "train station, museum, library, town hall, city park, old market, university, castle, nearest "
    "pharmacy, fire station, main square, bank, church, medical centre, river, bridge, public pool, "
    "nearest supermarket, zoo, airport, new theatre, book shop",
    "hospital, post office, art gallery, bus station, nearest bakery, school, lake, old town, pet shop, "
    "ice rink, city centre, cinema",
)
SONGS = _copied(
    "Silver River, Paper Moon, Golden Fields, Blue Lantern, Stay a While, Summer Roads, Northern Lights, "
    "Little Bird, Home Again, Walking on Sand, Empty Rooms, Red Kite, Black Velvet Sky, Last Train Home, "
    "Two Left Feet, Night Garden, Never Look Down, White Roses, Dancing in the Snow, Midnight Coffee",
    "Ocean Drive, Wild Honey, Under the Bridge, Seven Stars, Green Apples, Long Way Down, Open Windows, "
    "Winter Sun, Over the Hills, Falling Leaves",
)
ARTISTS = _copied(
    "the Night Owls, the Lost Boys, Iron Garden, the Wanderers, Electric Foxes, Stone Circle, the Quiet "
    "Ones, Blue Harbour, the Paper Kites, City Lights Band, the Red Shoes, Little Thunder, the Old "
    "Sailors, Velvet Maps, Coral Sky",
    "the Sleepy Bears, Winter Choir, the Postmen, Golden Rabbit, the Green Umbrellas, Southern Rain, the "
    "Tall Trees, Crystal Valley",
)
GENRES = _copied(
    "rock, classical, pop, country, folk, hip hop, metal, jazz, Christmas, Latin, Irish, electronic, "
    "film, soft rock, old French, swing",
    "punk, house, heavy metal, Spanish, Indian, summer, blues",
)
GOODS = _copied(
    "milk, bread, sugar, rice, salt, washing powder, orange juice, green tea, cat food, oil, fish, corn "
    "flakes, red wine, brown sugar, ice cream, hand soap, white bread, sea salt, fresh ginger, dish soap, "
    "paper towels, coffee, cheese, butter",
    "oat milk, dog food, jam, black pepper, apple juice, water, meat, soup, white wine, dark chocolate, "
    "baby food, honey",
)
COUNTED_GOODS = _copied(
    "apples, light bulbs, bread rolls, bin bags, books, cards, plants, sweet potatoes, red onions, brown "
    "eggs, green peppers, paper plates, wine glasses, boxes of cereal, cans of beans, white candles, "
    "oranges, lemons, water bottles",
    "bags of rice, flowers, hot dogs, black pens, pies, red apples, ice creams, green beans, jam jars, pears",
)
EVENTS = _with_article(
    "team meeting, doctor's appointment, book club meeting, job interview, budget review, driving lesson, "
    "vet visit, movie night, school concert, project review, phone call, math exam, work dinner, family "
    "lunch, science class, art class, test drive, dentist appointment, yoga class, parents' evening",
    "eye test, board meeting, car inspection, game night, staff training, flu shot, video call, history "
    "exam, music lesson, bank appointment, swimming lesson",
)
TASKS = _copied(
    "water the plants, feed the cat, pay the rent, call the bank, take out the trash, buy stamps, pick up the kids, "
    "wash the car, book a table, check the oven, send the invoice, take my pills, charge the bike, clean the fridge, "
    "return the books, renew my passport, order pizza, lock the back door",
    "walk the dog, pay the gas bill, collect the parcel, fix the printer, buy flowers, defrost the chicken, "
    "cancel the gym, empty the dishwasher, email the landlord",
)
MESSAGES = _copied(
    "I'm running late, dinner is ready, the train is delayed, I'm on my way, I will call back later, the "
    "meeting is over, I forgot my keys, we need more milk, I am stuck in traffic, happy birthday, the "
    "parcel has arrived, I can't come today, see you at the station, the kids are asleep, good luck with "
    "the exam, I love the present, my phone is broken",
    "I am at the airport, lunch is ready, the bus broke down, I will be home soon, the shop is closed, I "
    "found your phone, we won the game, I need a lift, we are at the beach",
)
PHRASES = _copied(
    "good night, thank you very much, where is the station, I am hungry, how much is it, see you soon, "
    "good morning, a glass of water, I am lost, the bill please, my name is Alex, I love this city, two "
    "tickets please, where is the toilet, what time is it, can you help me, more bread please",
    "happy new year, I am tired, open the window, a cup of tea, have a nice day, where is the beach, I "
    "need a doctor, see you tomorrow, how are you",
)
LANGUAGES = _copied(
    "French, German, Spanish, Italian, Dutch, Japanese, Arabic, Latin, Irish, Swedish, Polish, English",
    "Russian, Greek, Chinese, Hungarian, Danish",
)
ROOMS = _copied(
    "living room, hall, library, front room, back garden, play room, music room, main bedroom, kitchen, "
    "bedroom, big attic, garage",
    "office, study, TV room, game room, back room, bathroom",
)

DAYS = _closed(
    ("tomorrow", "tomorrow"),
    ("today", "today"),
    *((f"on {day}", day) for day in "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
)
CURRENCIES = _closed(*((name, name) for name in "dollars euros pounds yen francs".split()))
STATES = _closed(("on", "on"), ("off", "off"))
TRAVEL_MODES = _closed(("by bike", "bike"), ("by car", "car"), ("by bus", "bus"), ("on foot", "walk"))

DURATIONS = _durations()
DEGREES = _numbers((14, 15, 16, 17, 19, 20, 22, 23, 25, 26), (18, 21, 24))
PERCENTS = _numbers((5, 10, 15, 25, 30, 40, 45, 50, 65, 70, 75, 90), (20, 35, 60, 80))
AMOUNTS = _numbers(
    (5, 10, 12, 15, 18, 25, 30, 36, 40, 45, 50, 65, 70, 75, 90, 100, 120, 200, 250, 300),
    (20, 22, 35, 60, 80, 85, 150, 400),
)
QUANTITIES = _numbers(
    (2, 3, 4, 6, 8, 10, 12, 15),
    (5, 7, 9, 11),
    also=(Value("a dozen", 12), Value("half a dozen", 6), Value("a couple of", 2)),
)
