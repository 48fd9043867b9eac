// @anthropic-ai/sdk for Node: its tool runner, which calls the functions by itself.
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { z } from "zod";
import * as h from "./harness.mjs";

await h.perform({
  async tools() {
    const called = [];
    const get_weather = betaZodTool({
      name: "get_weather",
      description: h.WEATHER_DESCRIPTION,
      inputSchema: z.object({ city: z.string() }),
      run: (given) => called.push(given) && h.WEATHER,
    });
    const last = await new Anthropic().beta.messages.toolRunner({
      model: h.MODEL, max_tokens: 200, messages: [{ role: "user", content: h.WEATHER_QUESTION }], tools: [get_weather],
    });
    return { called: "get_weather", arguments: called[0], text: last.content.at(-1).text };
  },
});
