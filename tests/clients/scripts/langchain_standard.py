"""LangChain's own integration tests of a chat model, for each of the three APIs; pytest runs them in LangChain's environment."""

import os

from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

MODEL = os.environ["CLIENT_MODEL"]


class Text(ChatModelIntegrationTests):
    """What the model can do: text in, text and tool calls out."""

    @property
    def has_tool_choice(self):
        return True


class TestChat(Text):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        # With a base URL that is not OpenAI's, langchain-openai leaves out `stream_options` unless it is told.
        return {"model": MODEL, "stream_usage": True}


class TestResponses(TestChat):
    @property
    def chat_model_params(self):
        return {"model": MODEL, "use_responses_api": True}


class TestMessages(Text):
    @property
    def chat_model_class(self):
        return ChatAnthropic

    @property
    def chat_model_params(self):
        return {"model": MODEL, "max_tokens": 200}
