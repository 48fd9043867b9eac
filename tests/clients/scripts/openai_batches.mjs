// openai for Node: files and batches through its own resources.
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ maxRetries: 0 });
const model = process.env.CLIENT_MODEL;
const code = (promise) => promise.then(() => "none", (error) => error.constructor.name);
const ids = async (page) => {
  const found = [];
  for await (const one of page) found.push(one.id);
  return found;
};
const call = (id, more = {}) => ({
  custom_id: id,
  method: "POST",
  url: "/v1/chat/completions",
  body: { model, messages: [{ role: "user", content: "Hello" }], max_tokens: 5, ...more },
});
const upload = (calls) => {
  const text = calls.map((it) => JSON.stringify(it) + "\n").join("");
  return toFile(Buffer.from(text), "in.jsonl").then((file) => client.files.create({ file, purpose: "batch" }));
};
const create = (file) =>
  client.batches.create({ input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h", metadata: { night: "1" } });
const ended = async (id) => {
  for (;;) {
    const batch = await client.batches.retrieve(id);
    if (["completed", "failed", "expired", "cancelled"].includes(batch.status)) return batch;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
};
const lines = async (id) => (await (await client.files.content(id)).text()).trim().split("\n").map((it) => JSON.parse(it));

const file = await upload([call("a"), call("b", { temperature: -1 }), call("c")]);
const batch = await ended((await create(file)).id);
const seen = {
  status: [batch.status, batch.request_counts, batch.metadata],
  answers: (await lines(batch.output_file_id)).map((it) => [it.custom_id, it.response.status_code]),
  errors: (await lines(batch.error_file_id)).map((it) => [it.custom_id, it.response.status_code]),
  file: [(await client.files.retrieve(file.id)).bytes === file.bytes, (await client.files.waitForProcessing(file.id)).status],
};
const second = await create(await upload([call("a", { model: "unknown-model" })]));
seen.failed = (await ended(second.id)).errors.data.map((it) => [it.code, it.line]);
const third = await create(await upload(Array.from({ length: 900 }, (_, number) => call(String(number)))));
seen.cancelling = (await client.batches.cancel(third.id)).status;
seen.cancelled = (await ended(third.id)).status;
seen.batches = JSON.stringify(await ids(client.batches.list({ limit: 1 }))) === JSON.stringify([third.id, second.id, batch.id]);
const kept = await ids(client.files.list({ limit: 2, order: "asc", purpose: "batch" }));
seen.files = [kept.length, kept[0] === file.id];
seen.deleted = [(await client.files.delete(file.id)).deleted, await code(client.files.retrieve(file.id)), await code(client.batches.retrieve("batch_x"))];
console.log(JSON.stringify(seen));
