"""langchain-openai: chat completions, its default, or `responses`."""

import sys

from harness import *
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

API = {"use_responses_api": True} if "responses" in sys.argv else {}
model = ChatOpenAI(model=MODEL, temperature=0, **API)


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
    return model.with_structured_output(City).invoke(TOWER_QUESTION).model_dump()


@feature
def structured_streamed():
    return list(model.with_structured_output(City).stream(TOWER_QUESTION))[-1].model_dump()


@feature
def reasoning():
    content = model.invoke(QUESTION).content_blocks
    return next((block.get("reasoning") for block in content if block["type"] == "reasoning"), None)


@feature
def usage():
    usage = model.invoke(QUESTION).usage_metadata
    return [usage["input_tokens"], usage["output_tokens"]]


@feature
def errors():
    return [
        raised(ChatOpenAI(model=MODEL, api_key="sk-wrong", **API).invoke, QUESTION),
        raised(ChatOpenAI(model="none", **API).invoke, QUESTION),
        raised(ChatOpenAI(model=MODEL, temperature=9, **API).invoke, QUESTION),
    ]


@feature
def overflow():
    try:
        model.invoke(TOO_LONG)
    except Exception as error:
        return [type(error).__name__, error.code]


@feature
def embeddings():
    # Its default sends token ids of OpenAI's own tokenizer, which it would fetch.
    return OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False).embed_query("Paris")


@feature
def abort():
    answer = model.stream(ENDLESS_QUESTION)
    first = next(answer).type
    answer.close()
    return first


perform()
