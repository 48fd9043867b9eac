// AI SDK, by the provider that is named: `openai` (responses), `openai.chat`, `openai-compatible` or `anthropic`.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import * as h from "./harness.mjs";

const PROVIDERS = {
  openai: (apiKey) => createOpenAI({ baseURL: h.BASE_URL, apiKey }),
  "openai.chat": (apiKey) => createOpenAI({ baseURL: h.BASE_URL, apiKey }).chat,
  "openai-compatible": (apiKey, settings) =>
    createOpenAICompatible({ name: "company", baseURL: h.BASE_URL, apiKey, ...settings }),
  anthropic: (apiKey) => createAnthropic({ baseURL: h.BASE_URL, apiKey }),
};
const provider = PROVIDERS[process.argv[2]];
const model = provider(h.API_KEY)(h.MODEL);
// What the table says that the compatible provider needs, for what is off by default in it.
const willing = provider(h.API_KEY, { supportsStructuredOutputs: true, includeUsage: true })(h.MODEL);

const City = z.object({ city: z.string(), country: z.string() });
const called = [];
const get_weather = tool({
  description: h.WEATHER_DESCRIPTION,
  inputSchema: z.object({ city: z.string() }),
  execute: async (given) => called.push(given) && h.WEATHER,
});
globalThis.AI_SDK_LOG_WARNINGS = false;
const looping = { prompt: h.WEATHER_QUESTION, tools: { get_weather }, stopWhen: stepCountIs(3) };
const ask = (fields) => generateText({ model, prompt: h.QUESTION, temperature: 0, maxRetries: 0, ...fields });
const streamed = (fields) => streamText({ model, prompt: h.QUESTION, temperature: 0, onError() {}, ...fields });

await h.perform({
  async whole() {
    return (await ask()).text;
  },
  async stream() {
    return await h.collected(streamed().textStream);
  },
  async tools() {
    const { text } = await ask(looping);
    return { called: "get_weather", arguments: called.at(-1), text };
  },
  async tools_streamed() {
    const text = (await h.collected(streamed(looping).textStream)).join("");
    return { called: "get_weather", arguments: called.at(-1), text };
  },
  async structured() {
    return (await ask({ model: willing, prompt: h.TOWER_QUESTION, output: Output.object({ schema: City }) })).output;
  },
  async reasoning() {
    return (await ask()).reasoningText ?? null;
  },
  async usage() {
    const { inputTokens, outputTokens } = await streamed({ model: willing }).usage;
    return [inputTokens, outputTokens];
  },
  async errors() {
    const failures = [
      await ask({ model: provider("sk-wrong")(h.MODEL) }).catch((error) => error),
      await ask({ model: provider(h.API_KEY)("none") }).catch((error) => error),
      await ask({ topP: 9 }).catch((error) => error),
    ];
    return failures.map((error) => `${error.name} ${error.statusCode}`);
  },
  async overflow() {
    const error = await ask({ prompt: h.TOO_LONG }).catch((error) => error);
    return [error.name, error.data.error.code ?? error.message.split(":")[0]];
  },
  async embeddings() {
    const model = createOpenAI({ baseURL: h.BASE_URL, apiKey: h.API_KEY }).embedding(h.MODEL);
    return (await embed({ model, value: "Paris" })).embedding;
  },
  async abort() {
    const leaving = new AbortController();
    for await (const part of streamed({ prompt: h.ENDLESS_QUESTION, abortSignal: leaving.signal }).textStream) {
      leaving.abort();
      return part;
    }
  },
});
