"""openai for Python: responses."""

import json

import openai
from harness import *
from pydantic import BaseModel

client = openai.OpenAI()


class City(BaseModel):
    city: str
    country: str


def ask(text=QUESTION, **fields):
    return client.responses.create(model=MODEL, input=text, **fields)


@feature
def whole():
    return ask(temperature=0).output_text


@feature
def stream():
    events = ask(temperature=0, stream=True)
    return [event.delta for event in events if event.type == "response.output_text.delta"]


@feature
def tools():
    tool = {"type": "function", "name": "get_weather", "description": WEATHER_DESCRIPTION, "strict": False}
    fields = {"temperature": 0, "tools": [tool | {"parameters": WEATHER_PARAMETERS}]}
    items = [{"role": "user", "content": WEATHER_QUESTION}]
    first = ask(items, **fields)
    (call,) = [item for item in first.output if item.type == "function_call"]
    items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": WEATHER}]
    return {"called": call.name, "arguments": json.loads(call.arguments), "text": ask(items, **fields).output_text}


@feature
def structured():
    answer = client.responses.parse(model=MODEL, input=TOWER_QUESTION, temperature=0, text_format=City)
    return answer.output_parsed.model_dump()


@feature
def reasoning():
    (item,) = [item for item in ask(temperature=0).output if item.type == "reasoning"]
    return item.content[0].text


@feature
def usage():
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0) as events:
        answer = events.get_final_response()
    return [answer.usage.input_tokens, answer.usage.output_tokens]


@feature
def errors():
    stranger = openai.OpenAI(api_key="sk-wrong")
    return [
        raised(stranger.responses.create, model=MODEL, input=QUESTION),
        raised(client.responses.create, model="none", input=QUESTION),
        raised(ask, temperature=9),
    ]


@feature
def overflow():
    try:
        ask(TOO_LONG)
    except openai.BadRequestError as error:
        return [type(error).__name__, error.code]


@feature
def request_id():
    return ask()._request_id


@feature
def abort():
    with ask(ENDLESS_QUESTION, stream=True) as answer:
        return next(iter(answer)).type


perform()
