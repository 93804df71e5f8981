"""Tools for time: alarm, timer, reminder, calendar."""

from __future__ import annotations

from times import TIMES
from tool import Templates, Tool
from values import (
    DAYS,
    DURATIONS,
    EVENTS,
    TASKS,
)

PLANNING_TOOLS = (
    Tool(
        "set_alarm",
        {"time": TIMES, "day": DAYS},
        share=2,
        templates={
            "train": Templates(
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
                (
                    "I have to get up at {time} {day}",
                    "I want to be woken at {time}",
                    "alarm at {time} {day}",
                    "I must wake up at {time} {day}",
                ),
            ),
            "val": Templates(
                ("wake me {day} at {time}", "put an alarm on for {time} {day}", "have the alarm go off at {time}"),
                ("I need to be awake at {time} {day}", "I need an alarm at {time} {day}"),
            ),
            "test": Templates(
                ("schedule an alarm {day} for {time}",),
                ("don't let me sleep past {time} {day}", "{day} I have to be out of bed by {time}"),
            ),
        },
    ),
    Tool(
        "set_timer",
        {"duration": DURATIONS},
        templates={
            "train": Templates(
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
            "val": Templates(
                ("run a timer for {duration}", "start a countdown of {duration}", "set the timer to {duration}"),
                ("the eggs need {duration} so start a timer", "timer for {duration}"),
            ),
            "test": Templates(
                ("let me know when {duration} are up", "start the clock for {duration}"),
                ("can I have a timer that goes off in {duration}",),
            ),
        },
    ),
    Tool(
        "set_reminder",
        {"task": TASKS, "time": TIMES, "day": DAYS},
        share=2,
        templates={
            "train": Templates(
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
            "val": Templates(
                (
                    "make sure I remember to {task} {day}",
                    "add a reminder to {task} at {time}",
                    "remind me that I have to {task} {day}",
                ),
                ("I want to be reminded at {time} to {task}", "reminder to {task} {day}"),
            ),
            "test": Templates(
                ("give me a nudge at {time} to {task}",),
                ("I keep forgetting to {task} so remind me {day}", "I'm supposed to {task} at {time} so remind me"),
            ),
        },
    ),
    Tool(
        "create_event",
        {"title": EVENTS, "day": DAYS, "time": TIMES},
        share=2,
        templates={
            "train": Templates(
                (
                    "add {title} to my calendar {day} at {time}",
                    "put {title} in my calendar {day} at {time}",
                    "schedule {title} {day} at {time}",
                    "book {title} for {time} {day}",
                    "create an event for {title} {day} at {time}",
                    "add a calendar event for {title} at {time} {day}",
                    "note {title} at {time} {day} in the calendar",
                ),
                (
                    "I have {title} {day} at {time}",
                    "new event {title} {day} at {time}",
                    "there is {title} {day} at {time} so put it in my calendar",
                ),
            ),
            "val": Templates(
                (
                    "put {title} on the calendar for {time} {day}",
                    "make a calendar entry for {title} {day} at {time}",
                    "plan {title} {day} at {time}",
                ),
                ("I've got {title} at {time} {day}", "new calendar entry {title} at {time} {day}"),
            ),
            "test": Templates(
                ("block out {time} {day} for {title}", "mark down {title} at {time} {day} in my diary"),
                ("they booked me in for {title} at {time} {day} so save it in my calendar",),
            ),
        },
    ),
)
