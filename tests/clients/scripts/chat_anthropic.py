"""langchain-anthropic: messages."""

from harness import *
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

model = ChatAnthropic(model=MODEL, max_tokens=200)


class City(BaseModel):
    city: str
    country: str


@tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return WEATHER


@feature
def whole():
    return model.invoke(QUESTION).text


@feature
def stream():
    return [chunk.text for chunk in model.stream(QUESTION)]


@feature
def tools():
    bound = model.bind_tools([get_weather])
    messages = [HumanMessage(WEATHER_QUESTION)]
    answer = bound.invoke(messages)
    (call,) = answer.tool_calls
    messages += [answer, ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])]
    return {"called": call["name"], "arguments": call["args"], "text": bound.invoke(messages).text}


@feature
def structured():
    return model.with_structured_output(City, method="json_schema").invoke(TOWER_QUESTION).model_dump()


@feature
def reasoning():
    content = model.invoke(QUESTION).content_blocks
    return next((block["reasoning"] for block in content if block["type"] == "reasoning"), None)


@feature
def usage():
    usage = model.invoke(QUESTION).usage_metadata
    return [usage["input_tokens"], usage["output_tokens"]]


@feature
def errors():
    return [
        raised(ChatAnthropic(model=MODEL, max_tokens=200, api_key="sk-wrong").invoke, QUESTION),
        raised(ChatAnthropic(model="none", max_tokens=200).invoke, QUESTION),
        raised(ChatAnthropic(model=MODEL, max_tokens=-1).invoke, QUESTION),
    ]


@feature
def overflow():
    try:
        model.invoke(TOO_LONG)
    except Exception as error:
        return [type(error).__name__, error.body["error"]["message"].split(":")[0]]


@feature
def abort():
    answer = model.stream(ENDLESS_QUESTION)
    first = next(answer).type
    answer.close()
    return first


perform()
