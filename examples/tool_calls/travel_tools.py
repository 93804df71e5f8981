"""Tools for money, the weather and getting about."""

from __future__ import annotations

from tool import Templates, Tool
from values import AMOUNTS, CURRENCIES, PLACES, TRAVEL_MODES

TRAVEL_TOOLS = (
    Tool(
        "convert_currency",
        {"amount": AMOUNTS, "from": CURRENCIES, "to": CURRENCIES},
        templates={
            "train": Templates(
                (
                    "convert {amount} {from} to {to}",
                    "change {amount} {from} into {to}",
                    "tell me what {amount} {from} are in {to}",
                    "work out {amount} {from} in {to}",
                    "exchange {amount} {from} for {to}",
                    "find out how many {to} {amount} {from} are",
                    "show me {amount} {from} in {to}",
                    "tell me how much {amount} {from} is in {to}",
                    "give me the value of {amount} {from} in {to}",
                    "swap {amount} {from} for {to}",
                    "figure out what {amount} {from} would be in {to}",
                ),
                (
                    "how much is {amount} {from} in {to}",
                    "how many {to} are {amount} {from}",
                    "what's {amount} {from} in {to}",
                    "how many {to} do I get for {amount} {from}",
                    "{amount} {from} in {to}",
                    "how many {to} would {amount} {from} make",
                    "if I have {amount} {from} how many {to} is that",
                    "{amount} {from} to {to}",
                    "I'd like to know what {amount} {from} come to in {to}",
                    "I need {amount} {from} in {to}",
                    "I want to change {amount} {from} into {to}",
                    "can I get {to} for {amount} {from}",
                    "it costs {amount} {from} so what is that in {to}",
                    "in {to} how much is {amount} {from}",
                    "what do I get in {to} for {amount} {from}",
                    "I've got {amount} {from} so how many {to} will that be",
                    "I have {amount} {from} and want {to}",
                ),
            ),
            "val": Templates(
                ("turn {amount} {from} into {to}", "calculate {amount} {from} in {to}"),
                (
                    "what are {amount} {from} worth in {to}",
                    "how many {to} is {amount} {from}",
                    "I have {amount} {from} and need {to}",
                ),
            ),
            "test": Templates(
                ("find out how much {amount} {from} would be in {to}",),
                (
                    "if I hand over {amount} {from} how many {to} do I get back",
                    "what would {amount} {from} come to in {to}",
                ),
            ),
        },
    ),
    Tool(
        "find_route",
        {"to": PLACES, "mode": TRAVEL_MODES},
        templates={
            "train": Templates(
                (
                    "take me to the {to}",
                    "find a route to the {to} {mode}",
                    "show me the way to the {to}",
                    "navigate to the {to} {mode}",
                    "give me directions to the {to}",
                    "guide me to the {to} {mode}",
                    "bring me to the {to}",
                    "plan a route to the {to} {mode}",
                    "get me to the {to} {mode}",
                    "tell me how to get to the {to} {mode}",
                    "start navigation to the {to}",
                    "look up the way to the {to} {mode}",
                    "show me how to reach the {to} {mode}",
                    "work out a way to the {to}",
                    "help me get to the {to} {mode}",
                ),
                (
                    "how do I get to the {to} {mode}",
                    "what's the quickest way to the {to}",
                    "I want to go to the {to} {mode}",
                    "how far is the {to} {mode}",
                    "where is the {to}",
                    "can I reach the {to} {mode}",
                    "I need to get to the {to} {mode}",
                    "I'd like directions to the {to}",
                    "I'm lost and need to find the {to}",
                    "what's the best route to the {to} {mode}",
                    "route to the {to} {mode}",
                    "{mode} to the {to}",
                ),
            ),
            "val": Templates(
                ("find me the way to the {to} {mode}", "get me directions to the {to} {mode}", "lead me to the {to}"),
                ("how can I reach the {to} {mode}", "I need to get to the {to}"),
            ),
            "test": Templates(
                ("work out how to get to the {to} {mode}",),
                ("I'm heading to the {to} {mode} so tell me which way to go", "which way is the {to}"),
            ),
        },
    ),
)
