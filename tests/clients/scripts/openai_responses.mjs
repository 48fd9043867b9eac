// openai for Node: responses.
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import * as h from "./harness.mjs";

const client = new OpenAI();
const City = z.object({ city: z.string(), country: z.string() });
const ask = (input, fields) => client.responses.create({ model: h.MODEL, input, ...fields });

await h.perform({
  async whole() {
    return (await ask(h.QUESTION, { temperature: 0 })).output_text;
  },
  async stream() {
    const events = await h.collected(await ask(h.QUESTION, { temperature: 0, stream: true }));
    return events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  },
  async tools() {
    const described = { name: "get_weather", description: h.WEATHER_DESCRIPTION, parameters: h.WEATHER_PARAMETERS };
    const fields = { temperature: 0, tools: [{ type: "function", strict: false, ...described }] };
    const items = [{ role: "user", content: h.WEATHER_QUESTION }];
    const first = await ask(items, fields);
    const call = first.output.find((item) => item.type === "function_call");
    items.push(...first.output, { type: "function_call_output", call_id: call.call_id, output: h.WEATHER });
    const { output_text: text } = await ask(items, fields);
    return { called: call.name, arguments: JSON.parse(call.arguments), text };
  },
  async structured() {
    const text = { format: zodTextFormat(City, "city") };
    return (await client.responses.parse({ model: h.MODEL, input: h.TOWER_QUESTION, temperature: 0, text })).output_parsed;
  },
  async reasoning() {
    const { output } = await ask(h.QUESTION, { temperature: 0 });
    return output.find((item) => item.type === "reasoning").content[0].text;
  },
  async usage() {
    const { usage } = await client.responses.stream({ model: h.MODEL, input: h.QUESTION, temperature: 0 }).finalResponse();
    return [usage.input_tokens, usage.output_tokens];
  },
  async errors() {
    return [
      await h.thrown(() => new OpenAI({ apiKey: "sk-wrong" }).responses.create({ model: h.MODEL, input: h.QUESTION })),
      await h.thrown(() => ask(h.QUESTION, { model: "none" })),
      await h.thrown(() => ask(h.QUESTION, { temperature: 9 })),
    ];
  },
  async overflow() {
    const error = await ask(h.TOO_LONG).catch((error) => error);
    return [error.constructor.name, error.code];
  },
  async request_id() {
    return (await ask(h.QUESTION))._request_id;
  },
  async abort() {
    for await (const event of await ask(h.ENDLESS_QUESTION, { stream: true })) return event.type;
  },
});
