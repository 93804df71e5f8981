"""Tools for the weather, the shopping and the house."""

from __future__ import annotations

from tool import Templates, Tool
from values import DAYS, DEGREES, GOODS, PERCENTS, QUANTITIES, REGIONS, ROOMS, STATES

HOME_TOOLS = (
    Tool(
        "get_weather",
        {"place": REGIONS, "day": DAYS},
        templates={
            "train": Templates(
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
            "val": Templates(
                ("look up the weather in {place} {day}", "get me the forecast for {place}"),
                (
                    "how's the weather in {place} {day}",
                    "is it going to snow in {place} {day}",
                    "will I need a coat in {place} {day}",
                ),
            ),
            "test": Templates(
                ("find out what the weather's doing in {place} {day}",),
                ("what sort of weather can we expect in {place} {day}", "what's it like outside in {place}"),
            ),
        },
    ),
    Tool(
        "add_item",
        {"quantity": QUANTITIES, "item": GOODS},
        templates={
            "train": Templates(
                (
                    "add {quantity} {item} to the shopping list",
                    "put {quantity} {item} on the shopping list",
                    "put {quantity} {item} on my list",
                    "write {quantity} {item} on the list",
                    "note that we need {quantity} {item}",
                    "add {quantity} {item} to my groceries",
                    "get {quantity} {item} on the list",
                ),
                (
                    "I need to buy {quantity} {item}",
                    "we need {quantity} {item}",
                    "we need {quantity} {item} from the shop",
                    "{quantity} {item} for the shopping list",
                ),
            ),
            "val": Templates(
                (
                    "include {quantity} {item} in the shopping list",
                    "add {quantity} {item} to our list",
                    "put {quantity} {item} on the grocery list",
                ),
                ("we should get {quantity} {item}", "I have to buy {quantity} {item}"),
            ),
            "test": Templates(
                ("jot down {quantity} {item} for the supermarket",),
                ("we're out of {item} so add {quantity} to the list", "the shopping list is missing {quantity} {item}"),
            ),
        },
    ),
    Tool(
        "set_lights",
        {"room": ROOMS, "state": STATES, "brightness": PERCENTS},
        templates={
            "train": Templates(
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
            "val": Templates(
                (
                    "switch the {room} lights {state}",
                    "put the lights in the {room} {state}",
                    "bring the {room} lights to {brightness} percent",
                ),
                ("I'd like the lights {state} in the {room}", "lights in the {room} at {brightness} percent"),
            ),
            "test": Templates(
                (
                    "make sure the lights in the {room} are {state}",
                    "adjust the brightness in the {room} to {brightness} percent",
                ),
                ("{brightness} percent is enough light for the {room}",),
            ),
        },
    ),
    Tool(
        "set_heating",
        {"room": ROOMS, "degrees": DEGREES},
        templates={
            "train": Templates(
                (
                    "set the thermostat in the {room} to {degrees} degrees",
                    "set the heating in the {room} to {degrees} degrees",
                    "heat the {room} to {degrees} degrees",
                    "turn the {room} heating to {degrees}",
                    "make it {degrees} degrees in the {room}",
                    "change the temperature in the {room} to {degrees} degrees",
                    "bring the {room} to {degrees} degrees",
                ),
                (
                    "I want it {degrees} degrees in the {room}",
                    "the {room} should be {degrees} degrees",
                    "{degrees} degrees in the {room}",
                ),
            ),
            "val": Templates(
                (
                    "put the {room} thermostat at {degrees} degrees",
                    "warm the {room} up to {degrees} degrees",
                    "set the {room} to {degrees} degrees",
                ),
                (
                    "I'd like it to be {degrees} degrees in the {room}",
                    "the heating in the {room} should be at {degrees} degrees",
                ),
            ),
            "test": Templates(
                ("get the temperature in the {room} to {degrees} degrees", "keep the {room} at {degrees} degrees"),
                ("can we have the heating at {degrees} degrees in the {room}",),
            ),
        },
    ),
)
