/** Request: what the playground sends, and the same as a program. */

import { faultAt } from "./json";
import type { ToolCall } from "./stream";

/** What is set beside the conversation. Empty text leaves a field out. */
export interface Settings {
  model: string;
  effort: string;
  temperature: string;
  outputTokens: string;
  system: string;
  tools: string;
  choice: string;
  format: string;
  schema: string;
}

export type Message =
  | { role: "user" | "system"; content: string }
  | { role: "assistant"; content: string | null; tool_calls?: unknown[] }
  | { role: "tool"; tool_call_id: string; content: string };

export type Body = Record<string, unknown> & { model: string; messages: Message[] };

export const TOOLS_EXAMPLE = JSON.stringify(
  [
    {
      type: "function",
      function: {
        name: "get_weather",
        description: "The weather in a city now.",
        parameters: {
          type: "object",
          properties: { city: { type: "string" }, unit: { type: "string", enum: ["celsius", "fahrenheit"] } },
          required: ["city"],
        },
      },
    },
  ],
  null,
  2,
);

export const SCHEMA_EXAMPLE = JSON.stringify(
  {
    type: "object",
    properties: {
      title: { type: "string" },
      priority: { type: "string", enum: ["low", "medium", "high"] },
      steps: { type: "array", items: { type: "string" } },
    },
    required: ["title", "priority", "steps"],
    additionalProperties: false,
  },
  null,
  2,
);

/** What is wrong with a text that should be JSON, with its line; undefined where nothing is. */
export function faultOf(text: string, wanted: "object" | "array"): string | undefined {
  if (!text.trim()) return undefined;
  const at = faultAt(text);
  if (at === text.length) return "It ends too early: a bracket or a quote is still open.";
  if (at !== null) return `Line ${text.slice(0, at).split("\n").length} is not valid JSON.`;
  const value: unknown = JSON.parse(text);
  if (wanted === "array") return toolsFault(value);
  return isObject(value) ? undefined : "A JSON object is wanted: { … }.";
}

function toolsFault(value: unknown): string | undefined {
  if (!Array.isArray(value)) return "A list of tools is wanted: [ … ].";
  for (const [place, tool] of value.entries()) {
    const definition: unknown = isObject(tool) ? tool.function : undefined;
    if (!isObject(definition) || typeof definition.name !== "string") {
      return `Tool ${place + 1} has no function with a name.`;
    }
  }
  return undefined;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** The request's body; throws SyntaxError where tools or schema are no JSON. */
export function bodyOf(settings: Settings, messages: Message[]): Body {
  const body: Body = { model: settings.model, messages: [...messages] };
  if (settings.system.trim()) body.messages.unshift({ role: "system", content: settings.system });
  if (settings.effort) body.reasoning_effort = settings.effort;
  if (settings.temperature !== "") body.temperature = Number(settings.temperature);
  if (settings.outputTokens !== "") body.max_completion_tokens = Number(settings.outputTokens);
  if (settings.tools.trim()) {
    body.tools = JSON.parse(settings.tools);
    if (settings.choice) body.tool_choice = settings.choice;
  }
  if (settings.format === "json_object") body.response_format = { type: "json_object" };
  if (settings.format === "json_schema") {
    const schema: unknown = JSON.parse(settings.schema || "{}");
    body.response_format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  }
  return body;
}

export const called = (calls: ToolCall[]) =>
  calls.map((it) => ({ id: it.id, type: "function", function: { name: it.name, arguments: it.arguments } }));

export function asCurl(body: Body, origin: string): string {
  const json = JSON.stringify({ ...body, stream: true }, null, 2).replaceAll("'", "'\\''");
  return [
    `curl -N ${origin}/v1/chat/completions \\`,
    `  -H "Authorization: Bearer $SERVING_API_KEY" \\`,
    `  -H "Content-Type: application/json" \\`,
    `  -d '${json}'`,
  ].join("\n");
}

export function asPython(body: Body, origin: string): string {
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${python(value, 1)},`);
  return `import os

from openai import OpenAI

client = OpenAI(
    base_url="${origin}/v1",
    api_key=os.environ["SERVING_API_KEY"],
)
stream = client.chat.completions.create(
${fields.join("\n")}
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
`;
}

/** A JSON value as Python writes it. */
function python(value: unknown, depth: number): string {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  const parts = Array.isArray(value)
    ? value.map((it) => python(it, depth + 1))
    : Object.entries(value).map(([name, it]) => `${JSON.stringify(name)}: ${python(it, depth + 1)}`);
  const line = `${open}${parts.join(", ")}${close}`;
  if (line.length + depth * 4 <= 76 && !line.includes("\n")) return line;
  const margin = "    ".repeat(depth + 1);
  return `${open}\n${parts.map((it) => `${margin}${it},`).join("\n")}\n${"    ".repeat(depth)}${close}`;
}
