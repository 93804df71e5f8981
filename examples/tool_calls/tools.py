"""All tools of the quickstart's task."""

from __future__ import annotations

from home_tools import HOME_TOOLS
from phone_tools import PHONE_TOOLS
from planning_tools import PLANNING_TOOLS
from travel_tools import TRAVEL_TOOLS

TOOLS = PLANNING_TOOLS + PHONE_TOOLS + HOME_TOOLS + TRAVEL_TOOLS
