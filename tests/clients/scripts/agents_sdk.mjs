// @openai/agents for Node: by responses, its default, or by `chat`.
import { Agent, OpenAIProvider, Runner, run, setOpenAIAPI, setTracingDisabled, tool } from "@openai/agents";
import { z } from "zod";
import * as h from "./harness.mjs";

const isChat = process.argv.includes("chat");
setTracingDisabled(true); // traces go to OpenAI's own servers
if (isChat) setOpenAIAPI("chat_completions");

const called = [];
const City = z.object({ city: z.string(), country: z.string() });
const getWeather = tool({
  name: "get_weather",
  description: h.WEATHER_DESCRIPTION,
  parameters: z.object({ city: z.string() }),
  execute: async (given) => called.push(given) && h.WEATHER,
});
const assistant = (fields) => new Agent({ name: "Assistant", model: h.MODEL, ...fields });

await h.perform({
  async whole() {
    return (await run(assistant(), h.QUESTION)).finalOutput;
  },
  async stream() {
    const answer = await run(assistant(), h.QUESTION, { stream: true });
    return await h.collected(answer.toTextStream());
  },
  async tools() {
    const { finalOutput } = await run(assistant({ tools: [getWeather] }), h.WEATHER_QUESTION);
    return { called: "get_weather", arguments: called.at(-1), text: finalOutput };
  },
  async tools_streamed() {
    const answer = await run(assistant({ tools: [getWeather] }), h.WEATHER_QUESTION, { stream: true });
    await h.collected(answer);
    return { called: "get_weather", arguments: called.at(-1), text: answer.finalOutput };
  },
  async reasoning() {
    const { output } = (await run(assistant(), h.QUESTION)).rawResponses[0];
    const item = output.find((item) => item.type === "reasoning");
    return (item.rawContent ?? item.providerData.content)[0].text;
  },
  async structured() {
    return (await run(assistant({ outputType: City }), h.TOWER_QUESTION)).finalOutput;
  },
  async usage() {
    const { usage } = (await run(assistant(), h.QUESTION)).rawResponses[0];
    return [usage.inputTokens, usage.outputTokens];
  },
  async errors() {
    const stranger = new Runner({ modelProvider: new OpenAIProvider({ apiKey: "sk-wrong", useResponses: !isChat }) });
    return [
      await h.thrown(() => stranger.run(assistant(), h.QUESTION)),
      await h.thrown(() => run(assistant({ model: "none" }), h.QUESTION)),
      await h.thrown(() => run(assistant({ modelSettings: { temperature: 9 } }), h.QUESTION)),
    ];
  },
  async overflow() {
    const error = await run(assistant(), h.TOO_LONG).catch((error) => error);
    return [error.constructor.name, error.code];
  },
  async abort() {
    const leaving = new AbortController();
    const answer = await run(assistant(), h.ENDLESS_QUESTION, { stream: true, signal: leaving.signal });
    for await (const piece of answer.toTextStream()) {
      leaving.abort();
      return piece;
    }
  },
});
