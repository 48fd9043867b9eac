"""openai-agents for Python: by responses, its default, or by `chat`."""

import asyncio
import sys

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIProvider,
    RunConfig,
    Runner,
    function_tool,
    set_default_openai_api,
    set_tracing_disabled,
)
from harness import *
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

set_tracing_disabled(True)  # traces go to OpenAI's own servers
if "chat" in sys.argv:
    set_default_openai_api("chat_completions")
called = []


class City(BaseModel):
    city: str
    country: str


@function_tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    called.append(city)
    return WEATHER


def run(question=QUESTION, **fields):
    return Runner.run_sync(Agent(name="Assistant", model=MODEL, **fields), question)


@feature
def whole():
    return run().final_output


@feature
async def stream():
    answer = Runner.run_streamed(Agent(name="Assistant", model=MODEL), QUESTION)
    events = [event.data async for event in answer.stream_events() if event.type == "raw_response_event"]
    return [event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)]


@feature
def tools():
    text = run(WEATHER_QUESTION, tools=[get_weather]).final_output
    return {"called": "get_weather", "arguments": {"city": called[-1]}, "text": text}


@feature
async def tools_streamed():
    answer = Runner.run_streamed(Agent(name="Assistant", model=MODEL, tools=[get_weather]), WEATHER_QUESTION)
    [event async for event in answer.stream_events()]
    return {"called": "get_weather", "arguments": {"city": called[-1]}, "text": answer.final_output}


@feature
def reasoning():
    (item,) = [item for item in run().raw_responses[0].output if item.type == "reasoning"]
    return (item.content or item.summary)[0].text


@feature
def structured():
    return run(TOWER_QUESTION, output_type=City).final_output.model_dump()


@feature
def usage():
    usage = run().context_wrapper.usage
    return [usage.input_tokens, usage.output_tokens]


@feature
def errors():
    stranger = OpenAIProvider(api_key="sk-wrong", use_responses="chat" not in sys.argv)
    return [
        raised(
            Runner.run_sync,
            Agent(name="Assistant", model=MODEL),
            QUESTION,
            run_config=RunConfig(model_provider=stranger),
        ),
        raised(Runner.run_sync, Agent(name="Assistant", model="none"), QUESTION),
        raised(run, model_settings=ModelSettings(temperature=9)),
    ]


@feature
def overflow():
    try:
        run(TOO_LONG)
    except openai.BadRequestError as error:
        return [type(error).__name__, error.code]


@feature
async def abort():
    answer = Runner.run_streamed(Agent(name="Assistant", model=MODEL), ENDLESS_QUESTION)
    kinds = []
    async for event in answer.stream_events():
        kinds.append(event.type)
        answer.cancel()
    await asyncio.sleep(1)
    return kinds[0]


perform()
