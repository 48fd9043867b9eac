// Claude Code: `claude -p`, with the variables that its documentation names for a gateway.
import { calling, left, printed } from "./agents.mjs";
import * as h from "./harness.mjs";

// The package's own script would put it where `claude` is looked for.
const claude = `${import.meta.dirname}/node_modules/@anthropic-ai/claude-code-linux-x64/claude`;
const told = ["--print", "--output-format", "json", "--model", h.MODEL];
const answered = async (...args) => JSON.parse(await printed(claude, [...told, ...args]));

await h.perform({
  async whole() {
    return (await answered(h.QUESTION)).result;
  },
  async tools() {
    return { text: (await answered(calling("Bash", "command"))).result };
  },
  async usage() {
    const { usage } = await answered(h.QUESTION);
    return [usage.input_tokens, usage.output_tokens];
  },
  async abort() {
    return await left(claude, [...told, h.ENDLESS_QUESTION], 6);
  },
});
