"""What the Python scripts share: a feature is a function, and each prints one JSON line, in the order of the file.

The settings are the environment's, as a newcomer sets them: base URL and key. A script asks what tiny-gpt-oss knows.
"""

import asyncio
import inspect
import json
import os
import sys

ROOT_URL = os.environ["CLIENT_URL"]
BASE_URL = f"{ROOT_URL}/v1"
API_KEY = os.environ["CLIENT_KEY"]
MODEL = os.environ["CLIENT_MODEL"]

QUESTION = "What is 17 + 25?"
WEATHER_QUESTION = "Weather in Paris?"
TOWER_QUESTION = "Where is the Eiffel Tower?"
ENDLESS_QUESTION = "Count without end."
TOO_LONG = "word " * 20_000

WEATHER_DESCRIPTION = "Weather of a city."
WEATHER_PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = "18 degrees, sunny"

_features = []


def feature(do):
    """Mark a function as a feature: its name says which, its value is compared by the test."""
    _features.append(do)
    return do


def raised(do, *arguments, **fields):
    """The name of the error that a call raises."""
    try:
        value = do(*arguments, **fields)
        if inspect.iscoroutine(value):
            asyncio.run(value)
    except Exception as error:
        return type(error).__name__
    return "nothing"


def perform():
    """Every feature in turn; the reader of our lines answers each with one when we may go on."""
    for do in _features:
        try:
            value = asyncio.run(do()) if inspect.iscoroutinefunction(do) else do()
            line = {"value": value}
        except Exception as error:
            line = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"feature": do.__name__} | line), flush=True)
        sys.stdin.readline()
