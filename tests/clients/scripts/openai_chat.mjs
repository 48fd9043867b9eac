// openai for Node: chat completions.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import * as h from "./harness.mjs";

const client = new OpenAI();
const City = z.object({ city: z.string(), country: z.string() });
const messages = (content) => [{ role: "user", content }];
const ask = (content, fields) => client.chat.completions.create({ model: h.MODEL, messages: messages(content), ...fields });

await h.perform({
  async whole() {
    return (await ask(h.QUESTION, { temperature: 0 })).choices[0].message.content;
  },
  async stream() {
    const chunks = await h.collected(await ask(h.QUESTION, { temperature: 0, stream: true }));
    return chunks.map((chunk) => chunk.choices[0].delta.content ?? "");
  },
  async tools() {
    const called = [];
    const get_weather = (given) => called.push(given) && h.WEATHER;
    const described = { name: "get_weather", description: h.WEATHER_DESCRIPTION, parameters: h.WEATHER_PARAMETERS };
    const tools = [{ type: "function", function: { ...described, function: get_weather, parse: JSON.parse } }];
    const runner = client.chat.completions.runTools({
      model: h.MODEL, temperature: 0, messages: messages(h.WEATHER_QUESTION), tools,
    });
    const text = await runner.finalContent();
    return { called: "get_weather", arguments: called[0], text };
  },
  async structured() {
    const answer = await client.chat.completions.parse({
      model: h.MODEL, temperature: 0, messages: messages(h.TOWER_QUESTION), response_format: zodResponseFormat(City, "city"),
    });
    return answer.choices[0].message.parsed;
  },
  async reasoning() {
    return (await ask(h.QUESTION, { temperature: 0 })).choices[0].message.reasoning;
  },
  async usage() {
    const fields = { temperature: 0, stream: true, stream_options: { include_usage: true } };
    const { usage } = (await h.collected(await ask(h.QUESTION, fields))).at(-1);
    return [usage.prompt_tokens, usage.completion_tokens];
  },
  async errors() {
    return [
      await h.thrown(() => new OpenAI({ apiKey: "sk-wrong" }).models.list()),
      await h.thrown(() => ask(h.QUESTION, { model: "none" })),
      await h.thrown(() => ask(h.QUESTION, { temperature: 9 })),
    ];
  },
  async overflow() {
    const error = await ask(h.TOO_LONG).catch((error) => error);
    return [error.constructor.name, error.code];
  },
  async models() {
    return (await h.collected(client.models.list())).map((model) => model.id);
  },
  async embeddings() {
    return (await client.embeddings.create({ model: h.MODEL, input: "Paris" })).data[0].embedding;
  },
  async request_id() {
    return (await ask(h.QUESTION))._request_id;
  },
  async abort() {
    for await (const chunk of await ask(h.ENDLESS_QUESTION, { stream: true })) return chunk.object;
  },
});
