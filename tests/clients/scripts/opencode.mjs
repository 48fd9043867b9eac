// opencode: `opencode run`, with the compatible provider that its documentation tells one to configure.
import { writeFileSync } from "node:fs";
import { calling, printed } from "./agents.mjs";
import * as h from "./harness.mjs";

const opencode = `${import.meta.dirname}/node_modules/opencode-linux-x64-baseline/bin/opencode`;
const company = {
  npm: "@ai-sdk/openai-compatible",
  options: { baseURL: h.BASE_URL, apiKey: h.API_KEY },
  models: { [h.MODEL]: {} },
};
writeFileSync("opencode.json", JSON.stringify({ provider: { company } }));
const answered = (prompt) => printed(opencode, ["run", "--model", `company/${h.MODEL}`, prompt]);

await h.perform({
  async whole() {
    return (await answered(h.QUESTION)).trim();
  },
  async tools() {
    return { text: await answered(calling("bash", "command")) };
  },
});
