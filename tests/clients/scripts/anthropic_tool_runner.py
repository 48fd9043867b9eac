"""anthropic for Python: its tool runner, which calls the functions by itself."""

import anthropic
from harness import *

client = anthropic.Anthropic()
called = []


@anthropic.beta_tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    called.append(city)
    return WEATHER


@feature
def tools():
    messages = [{"role": "user", "content": WEATHER_QUESTION}]
    runner = client.beta.messages.tool_runner(model=MODEL, max_tokens=200, messages=messages, tools=[get_weather])
    last = runner.until_done()
    return {"called": "get_weather", "arguments": {"city": called[-1]}, "text": last.content[-1].text}


perform()
