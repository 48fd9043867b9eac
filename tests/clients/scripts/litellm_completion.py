"""litellm: `completion` by the provider that is named, `openai` (chat) or `anthropic` (messages)."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # the map that it would fetch

import litellm
from harness import *
from pydantic import BaseModel

PROVIDER = sys.argv[1]
ENDPOINT = {"api_base": BASE_URL if PROVIDER == "openai" else ROOT_URL, "api_key": API_KEY}
NAME = f"{PROVIDER}/{MODEL}"


class City(BaseModel):
    city: str
    country: str


def ask(text=QUESTION, **fields):
    sent = {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 200} | ENDPOINT | fields
    return litellm.completion(**sent)


@feature
def whole():
    return ask().choices[0].message.content


@feature
def stream():
    return [chunk.choices[0].delta.content or "" for chunk in ask(stream=True)]


@feature
def tools():
    function = {"name": "get_weather", "description": WEATHER_DESCRIPTION, "parameters": WEATHER_PARAMETERS}
    tools = [{"type": "function", "function": function}]
    message = ask(WEATHER_QUESTION, tools=tools).choices[0].message
    (call,) = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": WEATHER}
    messages = [{"role": "user", "content": WEATHER_QUESTION}, message.model_dump(), result]
    text = ask(tools=tools, messages=messages).choices[0].message.content
    return {"called": call.function.name, "arguments": json.loads(call.function.arguments), "text": text}


@feature
def structured():
    return json.loads(ask(TOWER_QUESTION, response_format=City).choices[0].message.content)


@feature
def reasoning():
    return ask().choices[0].message.reasoning_content


@feature
def usage():
    usage = ask().usage
    return [usage.prompt_tokens, usage.completion_tokens]


@feature
def errors():
    return [raised(ask, api_key="sk-wrong"), raised(ask, model=f"{PROVIDER}/none"), raised(ask, max_tokens=-1)]


@feature
def overflow():
    return [raised(ask, TOO_LONG)]


@feature
def embeddings():
    return litellm.embedding(model=NAME, input=["Paris"], **ENDPOINT).data[0]["embedding"]


@feature
def abort():
    answer = ask(ENDLESS_QUESTION, stream=True)
    first = next(answer).object
    answer.completion_stream.close()
    return first


perform()
