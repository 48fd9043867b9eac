// openai for Node: responses with memory, conversations and background, through its own resources, at one gateway and at another.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const other = new OpenAI({ maxRetries: 0, baseURL: process.env.OTHER_BASE_URL });
const model = process.env.CLIENT_MODEL;
const code = (promise) => promise.then(() => "none", (error) => [error.constructor.name, error.code]);
const all = async (page) => {
  const found = [];
  for await (const one of page) found.push(one);
  return found;
};

const first = await client.responses.create({ model, input: "one" });
const second = await other.responses.create({ model, input: "two", previous_response_id: first.id });
const seen = {
  retrieved: (await client.responses.retrieve(second.id)).output_text,
  input: (await all(other.responses.inputItems.list(second.id, { order: "asc", limit: 1 }))).length,
  counted: (await other.responses.inputTokens.count({ model, input: "x", previous_response_id: second.id })).object,
};
await client.responses.delete(first.id);
seen.deleted = await code(other.responses.retrieve(first.id));
seen.orphan = await code(other.responses.create({ model, input: "x", previous_response_id: second.id }));

const talk = await client.conversations.create({ metadata: { topic: "a" } });
const [item] = (await client.conversations.items.create(talk.id, { items: [{ role: "user", content: "hi" }] })).data;
await other.responses.create({ model, input: "three", conversation: talk.id });
seen.items = (await all(client.conversations.items.list(talk.id, { limit: 2 }))).length;
seen.item = (await other.conversations.items.retrieve(item.id, { conversation_id: talk.id })).content[0].text;
await client.conversations.items.delete(item.id, { conversation_id: talk.id });
seen.metadata = (await client.conversations.update(talk.id, { metadata: { topic: "b" } })).metadata;
seen.ended = (await other.conversations.delete(talk.id)).deleted;

let background = await client.responses.create({ model, input: "four", background: true });
seen.queued = background.status;
while (["queued", "in_progress"].includes(background.status)) background = await other.responses.retrieve(background.id);
seen.polled = background.status;
const whole = await all(await client.responses.create({ model, input: "five", background: true, stream: true }));
const id = whole[0].response.id;
seen.begun = whole.slice(0, 3).map((it) => it.type);
const rest = await all(await other.responses.retrieve(id, { stream: true, starting_after: 2 }));
seen.resumed = JSON.stringify(rest.map((it) => it.sequence_number)) === JSON.stringify(whole.slice(3).map((it) => it.sequence_number));
seen.cancelled = (await other.responses.cancel(id)).status;
console.log(JSON.stringify(seen));
