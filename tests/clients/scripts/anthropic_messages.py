"""anthropic for Python: messages."""

import anthropic
from harness import *
from pydantic import BaseModel

client = anthropic.Anthropic()


class City(BaseModel):
    city: str
    country: str


def ask(text=QUESTION, **fields):
    return client.messages.create(**asking(text), **fields)


def asking(text):
    return {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": text}]}


@feature
def whole():
    return "".join(block.text for block in ask().content if block.type == "text")


@feature
def stream():
    with client.messages.stream(**asking(QUESTION)) as answer:
        return list(answer.text_stream)


@feature
def tools():
    tool = {"name": "get_weather", "description": WEATHER_DESCRIPTION, "input_schema": WEATHER_PARAMETERS}
    messages = [{"role": "user", "content": WEATHER_QUESTION}]
    fields = {"model": MODEL, "max_tokens": 200, "tools": [tool]}
    first = client.messages.create(messages=messages, **fields)
    (call,) = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": WEATHER}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    last = client.messages.create(messages=messages, **fields)
    return {"called": call.name, "arguments": call.input, "text": last.content[-1].text}


@feature
def structured():
    return client.messages.parse(**asking(TOWER_QUESTION), output_format=City).parsed_output.model_dump()


@feature
def reasoning():
    return "".join(block.thinking for block in ask().content if block.type == "thinking")


@feature
def usage():
    with client.messages.stream(**asking(QUESTION)) as answer:
        usage = answer.get_final_message().usage
    return [usage.input_tokens, usage.output_tokens]


@feature
def errors():
    stranger = anthropic.Anthropic(api_key="sk-wrong")
    return [
        raised(stranger.models.list),
        raised(client.messages.create, **asking(QUESTION) | {"model": "none"}),
        raised(client.messages.create, **asking(QUESTION) | {"max_tokens": -1}),
    ]


@feature
def overflow():
    try:
        ask(TOO_LONG)
    except anthropic.BadRequestError as error:
        is_clear = error.body["error"]["message"].startswith("prompt is too long: ")
        return [type(error).__name__, "prompt is too long" if is_clear else error.body["error"]["message"]]


@feature
def models():
    return [model.id for model in client.models.list() if model.display_name and model.created_at]


@feature
def request_id():
    return ask()._request_id


@feature
def abort():
    with client.messages.stream(**asking(ENDLESS_QUESTION)) as answer:
        return next(iter(answer)).type


perform()
