"""Tools for music, messages and calls."""

from __future__ import annotations

from tool import Templates, Tool
from values import ARTISTS, CONTACTS, MESSAGES, SONGS

PHONE_TOOLS = (
    Tool(
        "play_music",
        {"song": SONGS, "artist": ARTISTS},
        templates={
            "train": Templates(
                (
                    "play {song} by {artist}",
                    "play the song {song}",
                    "play something by {artist}",
                    "put on {song} by {artist}",
                    "put on the song {song}",
                    "start the song {song}",
                    "play me a song by {artist}",
                    "put on some music by {artist}",
                    "let me hear {song} by {artist}",
                    "play me the song {song}",
                    "start some music by {artist}",
                    "play a track by {artist}",
                    "find me the song {song} and play it",
                    "give us a tune by {artist}",
                    "blast {song} by {artist}",
                    "get some songs by {artist} going",
                ),
                (
                    "I want to hear {song} by {artist}",
                    "I feel like listening to {song} by {artist}",
                    "let's listen to the song {song}",
                    "I want to listen to something by {artist}",
                    "can we have {song} by {artist}",
                    "could we hear something by {artist}",
                    "I'm in the mood for {artist}",
                    "how about the song {song}",
                    "time for some music by {artist}",
                    "it's too quiet in here so play something by {artist}",
                    "song {song} by {artist}",
                ),
            ),
            "val": Templates(
                ("start playing {song} by {artist}", "start playing the song {song}", "put on something by {artist}"),
                ("I'd like to hear the song {song}", "I'm in the mood for {song} by {artist}"),
            ),
            "test": Templates(
                ("find {song} by {artist} and play it", "let me hear the track called {song}"),
                ("can we have something from {artist}",),
            ),
        },
    ),
    Tool(
        "send_message",
        {"to": CONTACTS, "text": MESSAGES},
        templates={
            "train": Templates(
                (
                    "text {to} {text}",
                    "text {to} that {text}",
                    "tell {to} {text}",
                    "send {to} a message saying {text}",
                    "send a text to {to} saying {text}",
                    "message {to} that {text}",
                    "write to {to} that {text}",
                    "let {to} know that {text}",
                    "let {to} know {text}",
                    "drop {to} a line saying {text}",
                    "inform {to} that {text}",
                    "send {to} this message {text}",
                    "write {to} a text that says {text}",
                    "message {to} and say {text}",
                    "shoot {to} a text saying {text}",
                    "send the words {text} to {to}",
                    "text {text} to {to}",
                ),
                (
                    "{to} should know that {text} so tell them",
                    "message to {to} {text}",
                    "I want to tell {to} that {text}",
                    "I'd like to message {to} that {text}",
                    "I need to let {to} know that {text}",
                    "I want to send {to} a text saying {text}",
                    "can we tell {to} that {text}",
                    "{to} doesn't know yet that {text} so send a message",
                    "{to} has to hear that {text}",
                    "text for {to} {text}",
                    "message for {to} {text}",
                ),
            ),
            "val": Templates(
                ("tell {to} that {text}", "send {to} a text that says {text}", "message {to} {text}"),
                ("I want to text {to} that {text}", "text message for {to} {text}"),
            ),
            "test": Templates(
                ("drop {to} a quick text to say {text}", "pass on to {to} that {text}"),
                ("let's text {to} and say {text}",),
            ),
        },
    ),
    Tool(
        "call_contact",
        {"name": CONTACTS},
        templates={
            "train": Templates(
                (
                    "call {name}",
                    "ring {name}",
                    "phone {name}",
                    "give {name} a call",
                    "give {name} a quick call",
                    "get {name} on the phone",
                    "make a call to {name}",
                    "dial {name}",
                    "call {name} on speaker",
                    "put me through to {name}",
                    "get {name} on the line",
                    "call up {name}",
                    "ring {name} up for me",
                    "make a phone call to {name}",
                    "try {name} on the phone",
                    "call {name} back",
                    "reach {name} on the phone",
                    "hook me up with {name} on the phone",
                ),
                (
                    "I want to talk to {name}",
                    "I need to phone {name}",
                    "is {name} free for a call",
                    "I want to ring {name}",
                    "can I talk to {name}",
                    "could I have a word with {name} on the phone",
                    "I haven't heard from {name} so call them",
                    "let's give {name} a ring",
                    "phone call to {name}",
                    "I need {name} on the line",
                    "time to call {name}",
                    "I want {name} on the phone now",
                ),
            ),
            "val": Templates(
                ("give {name} a ring", "place a call to {name}", "try calling {name}"),
                ("I'd like to speak to {name}", "I have to call {name}"),
            ),
            "test": Templates(
                ("start a call with {name}", "connect me to {name}"),
                ("I haven't spoken to {name} in ages so call them up",),
            ),
        },
    ),
)
