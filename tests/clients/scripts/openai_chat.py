"""openai for Python: chat completions."""

import json

import openai
from harness import *
from pydantic import BaseModel

client = openai.OpenAI()


class City(BaseModel):
    city: str
    country: str


def ask(text=QUESTION, **fields):
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **fields)


@feature
def whole():
    return ask(temperature=0).choices[0].message.content


@feature
def stream():
    return [chunk.choices[0].delta.content or "" for chunk in ask(temperature=0, stream=True)]


@feature
def tools():
    function = {"name": "get_weather", "description": WEATHER_DESCRIPTION, "parameters": WEATHER_PARAMETERS}
    fields = {"model": MODEL, "temperature": 0, "tools": [{"type": "function", "function": function}]}
    messages = [{"role": "user", "content": WEATHER_QUESTION}]
    message = client.chat.completions.create(messages=messages, **fields).choices[0].message
    (call,) = message.tool_calls
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": WEATHER}]
    text = client.chat.completions.create(messages=messages, **fields).choices[0].message.content
    return {"called": call.function.name, "arguments": json.loads(call.function.arguments), "text": text}


@feature
def structured():
    messages = [{"role": "user", "content": TOWER_QUESTION}]
    answer = client.chat.completions.parse(model=MODEL, messages=messages, temperature=0, response_format=City)
    return answer.choices[0].message.parsed.model_dump()


@feature
def reasoning():
    return ask(temperature=0).choices[0].message.reasoning


@feature
def usage():
    chunks = list(ask(temperature=0, stream=True, stream_options={"include_usage": True}))
    return [chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens]


@feature
def errors():
    stranger = openai.OpenAI(api_key="sk-wrong")
    return [
        raised(stranger.models.list),
        raised(client.chat.completions.create, model="none", messages=[{"role": "user", "content": QUESTION}]),
        raised(ask, temperature=9),
    ]


@feature
def overflow():
    try:
        ask(TOO_LONG)
    except openai.BadRequestError as error:
        return [type(error).__name__, error.code]


@feature
def models():
    return [model.id for model in client.models.list()]


@feature
def embeddings():
    return client.embeddings.create(model=MODEL, input="Paris").data[0].embedding


@feature
def request_id():
    return ask()._request_id


@feature
def abort():
    with ask(ENDLESS_QUESTION, stream=True) as answer:
        return next(iter(answer)).object


perform()
