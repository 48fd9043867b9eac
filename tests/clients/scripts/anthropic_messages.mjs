// @anthropic-ai/sdk for Node: messages.
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import * as h from "./harness.mjs";

const client = new Anthropic();
const City = z.object({ city: z.string(), country: z.string() });
const asking = (content) => ({ model: h.MODEL, max_tokens: 200, messages: [{ role: "user", content }] });
const ask = (content, fields) => client.messages.create({ ...asking(content), ...fields });

await h.perform({
  async whole() {
    return (await ask(h.QUESTION)).content.find((block) => block.type === "text").text;
  },
  async stream() {
    const events = await h.collected(client.messages.stream(asking(h.QUESTION)));
    return events.map((event) => event.delta?.text ?? "");
  },
  async tools() {
    const tools = [{ name: "get_weather", description: h.WEATHER_DESCRIPTION, input_schema: h.WEATHER_PARAMETERS }];
    const body = { ...asking(h.WEATHER_QUESTION), tools };
    const { content } = await client.messages.create(body);
    const call = content.find((block) => block.type === "tool_use");
    const result = { type: "tool_result", tool_use_id: call.id, content: h.WEATHER };
    body.messages.push({ role: "assistant", content }, { role: "user", content: [result] });
    const last = await client.messages.create(body);
    return { called: call.name, arguments: call.input, text: last.content.at(-1).text };
  },
  async structured() {
    const output_config = { format: zodOutputFormat(City) };
    return (await client.messages.parse({ ...asking(h.TOWER_QUESTION), output_config })).parsed_output;
  },
  async reasoning() {
    return (await ask(h.QUESTION)).content.find((block) => block.type === "thinking").thinking;
  },
  async usage() {
    const { usage } = await client.messages.stream(asking(h.QUESTION)).finalMessage();
    return [usage.input_tokens, usage.output_tokens];
  },
  async errors() {
    return [
      await h.thrown(() => new Anthropic({ apiKey: "sk-wrong" }).models.list()),
      await h.thrown(() => ask(h.QUESTION, { model: "none" })),
      await h.thrown(() => ask(h.QUESTION, { top_k: -9 })),
    ];
  },
  async overflow() {
    const error = await ask(h.TOO_LONG).catch((error) => error);
    const { message } = error.error.error;
    return [error.constructor.name, message.startsWith("prompt is too long: ") ? "prompt is too long" : message];
  },
  async models() {
    const models = await h.collected(client.models.list());
    return models.filter((model) => model.display_name && model.created_at).map((model) => model.id);
  },
  async request_id() {
    return (await ask(h.QUESTION))._request_id;
  },
  async abort() {
    for await (const event of client.messages.stream(asking(h.ENDLESS_QUESTION))) return event.type;
  },
});
