"""The tools, their arguments, and the ways to ask for each of them.

A template names its arguments in braces; the tool call holds exactly the arguments the template names, in the
order of `Tool.arguments`. Templates under `held_out` are never used in training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from times import TIMES
from values import (
    AMOUNTS,
    ARTISTS,
    REGIONS,
    CONTACTS,
    COUNTED_GOODS,
    CURRENCIES,
    DAYS,
    DEGREES,
    DURATIONS,
    EVENTS,
    GENRES,
    GOODS,
    LANGUAGES,
    MESSAGES,
    PERCENTS,
    PHRASES,
    PLACES,
    QUANTITIES,
    ROOMS,
    SONGS,
    STATES,
    TASKS,
    TRAVEL_MODES,
    Pool,
)


@dataclass(frozen=True)
class Templates:
    """Ways to ask: commands ("wake me at {time}") take "could you" in front, other sentences do not."""

    commands: tuple[str, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """One tool.

    Args:
        name: Name of the tool in the tool call.
        arguments: Placeholder in the templates -> values it takes.
        seen: Templates for training.
        held_out: Templates for validation and test.
        keys: Placeholder -> name of the argument in the tool call, where the two differ.
    """

    name: str
    arguments: dict[str, Pool]
    seen: Templates
    held_out: Templates
    keys: dict[str, str] = field(default_factory=dict)


TOOLS = (
    Tool(
        "set_alarm",
        {"time": TIMES, "day": DAYS},
        seen=Templates(
            (
                "wake me at {time}",
                "wake me up at {time} {day}",
                "set an alarm for {time}",
                "set my alarm for {time} {day}",
                "set the alarm {day} at {time}",
                "get me up at {time} {day}",
                "make an alarm for {time} {day}",
                "ring the alarm at {time} {day}",
            ),
            ("I have to get up at {time} {day}", "I want to be woken at {time}", "alarm at {time} {day}"),
        ),
        held_out=Templates(
            ("wake me {day} at {time}", "put an alarm on for {time} {day}", "have the alarm go off at {time}"),
            ("I need to be awake at {time} {day}", "I need an alarm at {time} {day}"),
        ),
    ),
    Tool(
        "set_timer",
        {"duration": DURATIONS},
        seen=Templates(
            (
                "set a timer for {duration}",
                "start a timer for {duration}",
                "count down {duration}",
                "start the timer and make it {duration}",
                "put {duration} on the timer",
                "give me a timer of {duration}",
                "time {duration}",
            ),
            ("I need a timer for {duration}", "timer {duration}", "the pasta needs {duration} so set a timer"),
        ),
        held_out=Templates(
            ("run a timer for {duration}", "start a countdown of {duration}", "set the timer to {duration}"),
            ("the eggs need {duration} so start a timer", "timer for {duration}"),
        ),
    ),
    Tool(
        "set_reminder",
        {"task": TASKS, "time": TIMES, "day": DAYS},
        seen=Templates(
            (
                "remind me to {task} at {time}",
                "remind me {day} to {task}",
                "remind me to {task} {day}",
                "remind me at {time} to {task}",
                "set a reminder to {task} at {time}",
                "give me a reminder {day} to {task}",
            ),
            (
                "don't let me forget to {task} {day}",
                "I must remember to {task} at {time}",
                "reminder at {time} to {task}",
                "I need a reminder to {task} {day}",
            ),
        ),
        held_out=Templates(
            (
                "make sure I remember to {task} {day}",
                "add a reminder to {task} at {time}",
                "remind me that I have to {task} {day}",
            ),
            ("I want to be reminded at {time} to {task}", "reminder to {task} {day}"),
        ),
    ),
    Tool(
        "create_event",
        {"title": EVENTS, "day": DAYS, "time": TIMES},
        seen=Templates(
            (
                "add {title} to my calendar {day} at {time}",
                "put {title} in my calendar {day} at {time}",
                "schedule {title} {day} at {time}",
                "book {title} for {time} {day}",
                "create an event for {title} {day}",
                "add a calendar event for {title} at {time} {day}",
                "note {title} in the calendar {day}",
            ),
            (
                "I have {title} {day} at {time}",
                "new event {title} {day} at {time}",
                "there is {title} {day} so put it in my calendar",
            ),
        ),
        held_out=Templates(
            (
                "put {title} on the calendar for {time} {day}",
                "make a calendar entry {day} for {title}",
                "plan {title} {day} at {time}",
            ),
            ("I've got {title} at {time} {day}", "new calendar entry {title} {day}"),
        ),
    ),
    Tool(
        "play_music",
        {"song": SONGS, "artist": ARTISTS, "genre": GENRES},
        seen=Templates(
            (
                "play {song} by {artist}",
                "play the song {song}",
                "play some {genre} music",
                "play something by {artist}",
                "put on {song} by {artist}",
                "put on {genre} music",
                "start the song {song}",
                "play me the new album by {artist}",
            ),
            ("I want to hear {song} by {artist}", "I feel like {genre} music", "let's listen to the song {song}"),
        ),
        held_out=Templates(
            ("start playing {song} by {artist}", "play a bit of {genre} music", "put on something by {artist}"),
            ("I'd like to hear the song {song}", "I'm in the mood for {genre} music"),
        ),
    ),
    Tool(
        "send_message",
        {"to": CONTACTS, "text": MESSAGES},
        seen=Templates(
            (
                "text {to} {text}",
                "text {to} that {text}",
                "tell {to} {text}",
                "send {to} a message saying {text}",
                "send a text to {to} saying {text}",
                "message {to} that {text}",
                "write to {to} that {text}",
                "let {to} know that {text}",
            ),
            ("{to} should know that {text} so send a message", "message to {to} {text}"),
        ),
        held_out=Templates(
            ("tell {to} that {text}", "send {to} a text that says {text}", "message {to} {text}"),
            ("I want to text {to} that {text}", "text message for {to} {text}"),
        ),
    ),
    Tool(
        "call_contact",
        {"name": CONTACTS},
        seen=Templates(
            (
                "call {name}",
                "ring {name}",
                "phone {name}",
                "give {name} a call",
                "get {name} on the phone",
                "make a call to {name}",
                "dial {name}",
                "call {name} on speaker",
                "put me through to {name}",
            ),
            ("I want to talk to {name}", "I need to phone {name}", "is {name} free for a call"),
        ),
        held_out=Templates(
            ("give {name} a ring", "place a call to {name}", "try calling {name}"),
            ("I'd like to speak to {name}", "I have to call {name}"),
        ),
    ),
    Tool(
        "get_weather",
        {"place": REGIONS, "day": DAYS},
        seen=Templates(
            (
                "tell me the weather in {place} {day}",
                "check the weather in {place}",
                "give me the forecast for {place} {day}",
                "show me the weather for {place}",
            ),
            (
                "what's the weather like in {place}",
                "what's the weather in {place} {day}",
                "will it rain in {place} {day}",
                "is it cold in {place} {day}",
                "how warm will it be in {place} {day}",
                "do I need an umbrella in {place} {day}",
                "is it sunny in {place}",
            ),
        ),
        held_out=Templates(
            ("look up the weather in {place} {day}", "get me the forecast for {place}"),
            (
                "how's the weather in {place} {day}",
                "is it going to snow in {place} {day}",
                "will I need a coat in {place} {day}",
            ),
        ),
    ),
    Tool(
        "add_item",
        {"quantity": QUANTITIES, "item": GOODS, "items": COUNTED_GOODS},
        keys={"items": "item"},
        seen=Templates(
            (
                "add {item} to the shopping list",
                "add {quantity} {items} to the shopping list",
                "put {item} on my list",
                "put {quantity} {items} on the shopping list",
                "write {items} on the shopping list",
                "note that we need {item}",
                "add {quantity} {items} to my groceries",
            ),
            (
                "we're out of {item}",
                "I need to buy {quantity} {items}",
                "we need {item} from the shop",
                "we need {quantity} {items}",
            ),
        ),
        held_out=Templates(
            (
                "stick {item} on the shopping list",
                "add {quantity} {items} to our list",
                "put {quantity} {items} on the grocery list",
            ),
            ("we've run out of {item}", "I have to buy {quantity} {items}"),
        ),
    ),
    Tool(
        "set_lights",
        {"room": ROOMS, "state": STATES, "brightness": PERCENTS},
        seen=Templates(
            (
                "turn {state} the lights in the {room}",
                "turn the {room} lights {state}",
                "switch the light in the {room} {state}",
                "switch {state} the {room} light",
                "dim the {room} lights to {brightness} percent",
                "set the lights in the {room} to {brightness} percent",
                "turn the light {state} in the {room}",
            ),
            ("I want the {room} lights {state}", "{room} lights {state}", "{room} light at {brightness} percent"),
        ),
        held_out=Templates(
            (
                "switch the {room} lights {state}",
                "put the lights in the {room} {state}",
                "bring the {room} lights to {brightness} percent",
            ),
            ("I'd like the lights {state} in the {room}", "lights in the {room} at {brightness} percent"),
        ),
    ),
    Tool(
        "set_heating",
        {"room": ROOMS, "degrees": DEGREES},
        seen=Templates(
            (
                "set the thermostat to {degrees} degrees",
                "set the heating in the {room} to {degrees} degrees",
                "heat the {room} to {degrees} degrees",
                "turn the heating to {degrees}",
                "make it {degrees} degrees in the {room}",
                "change the temperature in the {room} to {degrees} degrees",
                "bring the temperature to {degrees} degrees",
            ),
            (
                "I want it {degrees} degrees in here",
                "the {room} should be {degrees} degrees",
                "thermostat to {degrees}",
            ),
        ),
        held_out=Templates(
            (
                "put the thermostat at {degrees} degrees",
                "warm the {room} up to {degrees} degrees",
                "set the {room} to {degrees} degrees",
            ),
            ("I'd like it to be {degrees} degrees in the {room}", "the heating should be at {degrees} degrees"),
        ),
    ),
    Tool(
        "convert_currency",
        {"amount": AMOUNTS, "from": CURRENCIES, "to": CURRENCIES},
        seen=Templates(
            (
                "convert {amount} {from} to {to}",
                "change {amount} {from} into {to}",
                "tell me what {amount} {from} are in {to}",
                "work out {amount} {from} in {to}",
            ),
            (
                "how much is {amount} {from} in {to}",
                "how many {to} are {amount} {from}",
                "what's {amount} {from} in {to}",
                "how many {to} do I get for {amount} {from}",
                "{amount} {from} in {to}",
            ),
        ),
        held_out=Templates(
            ("turn {amount} {from} into {to}", "calculate {amount} {from} in {to}"),
            (
                "what are {amount} {from} worth in {to}",
                "how many {to} is {amount} {from}",
                "I have {amount} {from} and need {to}",
            ),
        ),
    ),
    Tool(
        "translate",
        {"text": PHRASES, "language": LANGUAGES},
        seen=Templates(
            (
                "translate {text} into {language}",
                "say {text} in {language}",
                "tell me how to say {text} in {language}",
                "put {text} into {language}",
                "translate into {language} {text}",
            ),
            (
                "how do you say {text} in {language}",
                "what's the {language} for {text}",
                "what is {text} in {language}",
                "how would I say {text} in {language}",
            ),
        ),
        held_out=Templates(
            (
                "give me the {language} for {text}",
                "translate {text} to {language}",
                "teach me to say {text} in {language}",
            ),
            ("how do I say {text} in {language}", "what does {text} sound like in {language}"),
        ),
    ),
    Tool(
        "find_route",
        {"to": PLACES, "mode": TRAVEL_MODES},
        seen=Templates(
            (
                "take me to the {to}",
                "find a route to the {to} {mode}",
                "show me the way to the {to}",
                "navigate to the {to} {mode}",
                "give me directions to the {to}",
                "guide me to the {to} {mode}",
            ),
            (
                "how do I get to the {to} {mode}",
                "what's the quickest way to the {to}",
                "I want to go to the {to} {mode}",
                "how far is the {to} {mode}",
            ),
        ),
        held_out=Templates(
            ("find me the way to the {to} {mode}", "get me directions to the {to} {mode}", "lead me to the {to}"),
            ("how can I reach the {to} {mode}", "I need to get to the {to}"),
        ),
    ),
)
