// Codex: `codex exec`, with the provider that its documentation tells one to configure.
import { writeFileSync } from "node:fs";
import { calling, left, printed } from "./agents.mjs";
import * as h from "./harness.mjs";

const codex = `${import.meta.dirname}/node_modules/.bin/codex`;
const provider = `{ name = "company", base_url = "${h.BASE_URL}", env_key = "CLIENT_KEY" }`;
const settings = ["-c", `model_provider="company"`, "-c", `model_providers.company=${provider}`];
const told = ["exec", "--skip-git-repo-check", "--json", "--model", h.MODEL, ...settings];

async function events(prompt, ...args) {
  return (await printed(codex, [...told, ...args, prompt])).trim().split("\n").map((line) => JSON.parse(line));
}
const said = (items, type) => items.findLast((event) => event.item?.type === type)?.item;

await h.perform({
  async whole() {
    return said(await events(h.QUESTION), "agent_message").text;
  },
  async tools() {
    const items = await events(calling("exec_command", "cmd"));
    return { output: said(items, "command_execution").aggregated_output, text: said(items, "agent_message").text };
  },
  async structured() {
    const text = { type: "string" };
    const schema = { type: "object", properties: { city: text, country: text }, required: ["city", "country"] };
    writeFileSync("schema.json", JSON.stringify({ ...schema, additionalProperties: false }));
    return JSON.parse(said(await events(h.TOWER_QUESTION, "--output-schema", "schema.json"), "agent_message").text);
  },
  async usage() {
    const { usage } = (await events(h.QUESTION)).at(-1);
    return [usage.input_tokens, usage.output_tokens];
  },
  async abort() {
    return await left(codex, [...told, h.ENDLESS_QUESTION], 5);
  },
});
