/** Playground: a conversation with one model. Reasoning is shown apart from the answer; tool calls are answered by hand. */

import { useEffect, useRef, useState } from "preact/hooks";
import { ask, asFailure, type Failure } from "./api";
import { duration, fine, plural, short } from "./format";
import { useRead } from "./live";
import { Button, Choice, Code, Copy, Dialog, Empty, Field, Heading, Notice, Wrong } from "./parts";
import {
  asCurl,
  asPython,
  bodyOf,
  called,
  faultOf,
  SCHEMA_EXAMPLE,
  TOOLS_EXAMPLE,
  type Body,
  type Message,
  type Settings,
} from "./request";
import { go, type Route } from "./route";
import type { ModelCard, SignedIn } from "./shapes";
import { events, grown, nothing, type Answer, type Chunk } from "./stream";

interface Reply extends Answer {
  kind: "assistant";
  model: string;
  firstS: number | null;
  totalS: number | null;
  requestId: string | null;
  failure: Failure | null;
  isStopped: boolean;
}

type Turn = { kind: "user"; text: string } | { kind: "tool"; id: string; name: string; text: string } | Reply;

interface Kept {
  turns: Turn[];
  draft: string;
  system: string;
  tools: string;
  schema: string;
}

/** As long as the page is open, also while another view is; never in the address or in storage, which others may read. */
let kept: Kept = { turns: [], draft: "", system: "", tools: "", schema: "" };

export function forgetPlayground(): void {
  kept = { turns: [], draft: "", system: "", tools: "", schema: "" };
}

const EFFORTS = [
  ["", "As the model has it"],
  ["low", "Low"],
  ["medium", "Medium"],
  ["high", "High"],
] as const;
const FORMATS = [
  ["", "Text"],
  ["json_object", "Any JSON object"],
  ["json_schema", "JSON by a schema"],
] as const;
const CHOICES = [
  ["", "The model decides"],
  ["required", "It has to call one"],
  ["none", "It must not call one"],
] as const;

export function Playground({ route }: { route: Route; session: SignedIn }) {
  const models = useRead<{ data: ModelCard[] }>("/v1/models");
  const [text, setText] = useState<Kept>(kept);
  const [isRunning, setRunning] = useState(false);
  const [isShown, setShown] = useState(false);
  const [isFolded, setFolded] = useState(true);
  const stop = useRef<AbortController | null>(null);
  const change = (changes: Partial<Kept>) => {
    kept = { ...kept, ...changes };
    setText(kept);
  };
  useEffect(() => () => stop.current?.abort(), []);

  const names = models.value?.data.map((it) => it.id) ?? [];
  const { model: wanted = "", effort = "", temperature = "", tokens = "", format = "", choice = "" } = route.parameters;
  const model = wanted || names[0] || "";
  const settings: Settings = { ...text, model, effort, temperature, outputTokens: tokens, format, choice };
  const set = (name: string, value: string) => go("playground", { ...route.parameters, [name]: value }, true);
  const fault = settingsFault(settings);

  const run = async (turns: Turn[]) => {
    const ending = new AbortController();
    stop.current = ending;
    setRunning(true);
    const show = (reply: Reply) => change({ turns: [...turns, reply] });
    await answered(bodyOf(settings, messagesOf(turns)), ending.signal, show);
    setRunning(false);
  };
  const send = () => {
    const draft = kept.draft.trim();
    if (!draft || isRunning || fault || !model) return;
    const turns: Turn[] = [...kept.turns, { kind: "user", text: draft }];
    change({ turns, draft: "" });
    void run(turns);
  };
  const sendResults = (results: Turn[]) => {
    const turns = [...kept.turns, ...results];
    change({ turns });
    void run(turns);
  };

  return (
    <div class="playground">
      <Heading title="Playground">
        <Button size="fold" aria-expanded={!isFolded} onClick={() => setFolded(!isFolded)}>
          Settings
        </Button>
        <Button onClick={() => setShown(true)} disabled={!!fault || !model}>
          Show as code
        </Button>
        <Button onClick={() => change({ turns: [] })} disabled={isRunning || !text.turns.length}>
          Clear
        </Button>
      </Heading>
      <Wrong failure={models.failure} retry={models.reload} />
      <div class="columns">
        <SettingsPanel settings={settings} names={names} set={set} change={change} isFolded={isFolded} />
        <section class="conversation" aria-label="Conversation">
          <Conversation turns={text.turns} isRunning={isRunning} onResults={sendResults} />
          {models.value && !names.length && (
            <Notice kind="warn">No model is served yet, or none that you may use.</Notice>
          )}
          <Composer
            draft={text.draft}
            onDraft={(draft) => change({ draft })}
            onSend={send}
            onStop={() => stop.current?.abort()}
            isRunning={isRunning}
            isReady={!!model}
            fault={fault}
          />
        </section>
      </div>
      {isShown && <AsCode body={bodyOf(settings, forCode(text))} onClose={() => setShown(false)} />}
    </div>
  );
}

function settingsFault(it: Settings): string | undefined {
  const tools = faultOf(it.tools, "array");
  if (tools) return `Tools: ${tools}`;
  if (it.format !== "json_schema") return undefined;
  if (!it.schema.trim()) return "Schema: write one, or start from the example.";
  const schema = faultOf(it.schema, "object");
  return schema && `Schema: ${schema}`;
}

/** The conversation, with what is being written as its last question. */
function forCode(it: Kept): Message[] {
  const draft = it.draft.trim() || (it.turns.length ? "" : "Name the capital of France.");
  return messagesOf(draft ? [...it.turns, { kind: "user", text: draft }] : it.turns);
}

function messagesOf(turns: Turn[]): Message[] {
  return turns.flatMap((it): Message[] => {
    if (it.kind === "user") return [{ role: "user", content: it.text }];
    if (it.kind === "tool") return [{ role: "tool", tool_call_id: it.id, content: it.text }];
    if (!it.text && !it.calls.length) return [];
    return [
      { role: "assistant", content: it.text || null, ...(it.calls.length && { tool_calls: called(it.calls) }) },
    ];
  });
}

/** One call; `show` gets the answer as it grows, at most once a frame. */
async function answered(body: Body, signal: AbortSignal, show: (reply: Reply) => void): Promise<void> {
  const begun = performance.now();
  const since = () => (performance.now() - begun) / 1000;
  let reply: Reply = {
    ...nothing(),
    ...{ kind: "assistant", model: body.model, firstS: null, totalS: null, requestId: null },
    ...{ failure: null, isStopped: false },
  };
  let frame = 0;
  const later = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      show(reply);
    });
  };
  show(reply);
  try {
    const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
    const answer = await ask("/v1/chat/completions", { method: "POST", body: streamed, signal });
    reply = { ...reply, requestId: answer.headers.get("x-request-id") };
    for await (const data of events(answer.body!)) {
      if (data === "[DONE]") break;
      const next = { ...reply, ...grown(reply, JSON.parse(data) as Chunk, reply.requestId) };
      const hasBegun = next.text || next.reasoning || next.calls.length;
      reply = { ...next, firstS: next.firstS ?? (hasBegun ? since() : null) };
      later();
    }
  } catch (error) {
    reply = signal.aborted ? { ...reply, isStopped: true } : { ...reply, failure: asFailure(error) };
  }
  cancelAnimationFrame(frame);
  show({ ...reply, totalS: since() });
}

function SettingsPanel({
  settings,
  names,
  set,
  change,
  isFolded,
}: {
  settings: Settings;
  names: string[];
  set: (name: string, value: string) => void;
  change: (changes: Partial<Kept>) => void;
  isFolded: boolean;
}) {
  const known = names.includes(settings.model) || !settings.model ? names : [settings.model, ...names];
  return (
    <section class={`settings panel ${isFolded ? "folded" : ""}`} aria-label="Settings">
      <Choice
        label="Model"
        value={settings.model}
        options={known.map((it) => [it, it] as const)}
        onChange={(it) => set("model", it)}
      />
      <Choice label="Reasoning effort" value={settings.effort} options={EFFORTS} onChange={(it) => set("effort", it)} />
      <div class="pair">
        <Field label="Temperature">
          {(ties) => (
            <input
              {...ties}
              type="number"
              min="0"
              max="2"
              step="0.1"
              placeholder="1"
              value={settings.temperature}
              onChange={(event) => set("temperature", event.currentTarget.value)}
            />
          )}
        </Field>
        <Field label="Output tokens">
          {(ties) => (
            <input
              {...ties}
              type="number"
              min="1"
              step="1"
              placeholder="default"
              value={settings.outputTokens}
              onChange={(event) => set("tokens", event.currentTarget.value)}
            />
          )}
        </Field>
      </div>
      <Field label="System message">
        {(ties) => (
          <textarea
            {...ties}
            rows={3}
            value={settings.system}
            onInput={(event) => change({ system: event.currentTarget.value })}
          />
        )}
      </Field>
      <Choice label="Answer" value={settings.format} options={FORMATS} onChange={(it) => set("format", it)} />
      {settings.format === "json_schema" && (
        <JsonField
          label="Schema"
          text={settings.schema}
          wanted="object"
          example={SCHEMA_EXAMPLE}
          onText={(schema) => change({ schema })}
        />
      )}
      <JsonField
        label="Tools"
        text={settings.tools}
        wanted="array"
        example={TOOLS_EXAMPLE}
        onText={(tools) => change({ tools })}
      />
      {settings.tools.trim() && (
        <Choice label="Tool choice" value={settings.choice} options={CHOICES} onChange={(it) => set("choice", it)} />
      )}
    </section>
  );
}

/** A text that has to be JSON: what is wrong with it is said while it is written. */
function JsonField({
  label,
  text,
  wanted,
  example,
  onText,
}: {
  label: string;
  text: string;
  wanted: "object" | "array";
  example: string;
  onText: (text: string) => void;
}) {
  const fault = faultOf(text, wanted);
  return (
    <div class="json">
      <Field label={label} fault={fault}>
        {(ties) => (
          <textarea
            {...ties}
            class="mono"
            rows={Math.min(14, Math.max(3, text.split("\n").length))}
            spellcheck={false}
            placeholder={wanted === "array" ? "[ ]" : "{ }"}
            value={text}
            onInput={(event) => onText(event.currentTarget.value)}
          />
        )}
      </Field>
      <div class="actions">
        {!text.trim() && (
          <Button size="small" onClick={() => onText(example)}>
            Start from an example<span class="unseen"> of {label.toLowerCase()}</span>
          </Button>
        )}
        {text.trim() && !fault && (
          <Button size="small" onClick={() => onText(JSON.stringify(JSON.parse(text), null, 2))}>
            Format<span class="unseen"> {label.toLowerCase()}</span>
          </Button>
        )}
        {text.trim() && (
          <Button size="small" onClick={() => onText("")}>
            Remove<span class="unseen"> {label.toLowerCase()}</span>
          </Button>
        )}
      </div>
    </div>
  );
}

function Conversation({
  turns,
  isRunning,
  onResults,
}: {
  turns: Turn[];
  isRunning: boolean;
  onResults: (results: Turn[]) => void;
}) {
  const end = useRef<HTMLDivElement>(null);
  const last = turns.at(-1);
  const length = last?.kind === "assistant" ? last.text.length + last.reasoning.length : 0;
  useEffect(() => {
    if (turns.length) end.current?.scrollIntoView({ block: "nearest" });
  }, [turns.length, length]);
  if (!turns.length) {
    return (
      <Empty title="Ask something">
        The answer streams in here, with the model's reasoning apart from it. Conversations stay in this tab and are gone
        when it closes.
      </Empty>
    );
  }
  const waiting = last?.kind === "assistant" && !isRunning && last.calls.length ? last : null;
  return (
    <div class="turns">
      {turns.map((turn, place) => (
        <TurnShown key={place} turn={turn} isRunning={isRunning && place === turns.length - 1} />
      ))}
      {waiting && <Results key={turns.length} reply={waiting} onResults={onResults} />}
      <p class="unseen" role="status">
        {isRunning ? "The model answers." : last?.kind === "assistant" ? "The answer is complete." : ""}
      </p>
      <div class="end" ref={end} />
    </div>
  );
}

function TurnShown({ turn, isRunning }: { turn: Turn; isRunning: boolean }) {
  if (turn.kind === "user") {
    return (
      <article class="turn user">
        <h2>You</h2>
        <p class="prose">{turn.text}</p>
      </article>
    );
  }
  if (turn.kind === "tool") {
    return (
      <article class="turn tool">
        <h2>
          Result of <code>{turn.name}</code>
        </h2>
        <pre tabIndex={0} role="region" aria-label={`Result of ${turn.name}`}>
          {turn.text}
        </pre>
      </article>
    );
  }
  return <ReplyShown reply={turn} isRunning={isRunning} />;
}

function ReplyShown({ reply, isRunning }: { reply: Reply; isRunning: boolean }) {
  const isThinking = isRunning && !reply.text && !reply.calls.length;
  return (
    <article class="turn assistant" aria-busy={isRunning}>
      <h2>{reply.model}</h2>
      {reply.reasoning && (
        <details class="reasoning" open>
          <summary>{isThinking ? "Reasoning …" : "Reasoning"}</summary>
          <p class="prose">{reply.reasoning}</p>
        </details>
      )}
      {reply.text && <p class="prose answer">{reply.text}</p>}
      {reply.calls.map((it) => (
        <div key={it.id} class="call">
          <h3>
            Calls <code>{it.name}</code>
          </h3>
          <pre tabIndex={0} role="region" aria-label={`Arguments of ${it.name}`}>
            {indented(it.arguments)}
          </pre>
        </div>
      ))}
      {isThinking && !reply.reasoning && <p class="faint waiting">Waiting for the first token …</p>}
      {reply.failure && <Wrong failure={reply.failure} />}
      {reply.isStopped && <p class="faint">Stopped.</p>}
      {reply.finish === "length" && <p class="faint">Cut off: the limit of output tokens was reached.</p>}
      {!isRunning && !reply.failure && <Facts reply={reply} />}
    </article>
  );
}

/** How long it took and what it cost, in one line. */
function Facts({ reply }: { reply: Reply }) {
  const { usage, firstS, totalS } = reply;
  const streamingS = firstS !== null && totalS !== null ? totalS - firstS : 0;
  const rate = usage && streamingS > 0.05 ? (usage.completion_tokens - 1) / streamingS : null;
  const reasoned = usage?.completion_tokens_details?.reasoning_tokens;
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  const facts = [
    firstS !== null && `first token after ${duration(firstS)}`,
    rate !== null && rate > 0 && `${fine(rate)} tokens/s`,
    usage && `${plural(usage.prompt_tokens, "token")} in${cached ? ` (${short(cached)} cached)` : ""}`,
    usage && `${short(usage.completion_tokens)} out${reasoned ? ` (${short(reasoned)} reasoning)` : ""}`,
  ].filter(Boolean);
  return (
    <footer class="facts faint">
      <span>{facts.join(" · ")}</span>
      {reply.text && <Copy text={reply.text} label="Copy answer" />}
    </footer>
  );
}

/** The results of the tools that the model called, written by hand. */
function Results({ reply, onResults }: { reply: Reply; onResults: (results: Turn[]) => void }) {
  const [texts, setTexts] = useState<Record<string, string>>({});
  const send = (event: Event) => {
    event.preventDefault();
    onResults(reply.calls.map((it) => ({ kind: "tool", id: it.id, name: it.name, text: texts[it.id] ?? "" })));
  };
  return (
    <form class="panel results" onSubmit={send}>
      {reply.calls.map((it) => (
        <Field key={it.id} label={`What ${it.name} returns`}>
          {(ties) => (
            <textarea
              {...ties}
              class="mono"
              rows={2}
              required
              value={texts[it.id] ?? ""}
              onInput={(event) => setTexts({ ...texts, [it.id]: event.currentTarget.value })}
            />
          )}
        </Field>
      ))}
      <Button kind="main" type="submit">
        {reply.calls.length > 1 ? "Send results" : "Send result"}
      </Button>
    </form>
  );
}

function Composer({
  draft,
  onDraft,
  onSend,
  onStop,
  isRunning,
  isReady,
  fault,
}: {
  draft: string;
  onDraft: (text: string) => void;
  onSend: () => void;
  onStop: () => void;
  isRunning: boolean;
  isReady: boolean;
  fault: string | undefined;
}) {
  const onKey = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    onSend();
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        onSend();
      }}
    >
      <Field label="Message" hint="Enter sends, Shift+Enter starts a new line." fault={fault}>
        {(ties) => (
          <textarea
            {...ties}
            rows={3}
            value={draft}
            onInput={(event) => onDraft(event.currentTarget.value)}
            onKeyDown={onKey}
          />
        )}
      </Field>
      {isRunning ? (
        <Button onClick={onStop}>Stop</Button>
      ) : (
        <Button kind="main" type="submit" disabled={!isReady || !draft.trim() || !!fault}>
          Send
        </Button>
      )}
    </form>
  );
}

function AsCode({ body, onClose }: { body: Body; onClose: () => void }) {
  const [isPython, setPython] = useState(false);
  const text = isPython ? asPython(body, location.origin) : asCurl(body, location.origin);
  return (
    <Dialog title="This request as code" onClose={onClose} isBroad>
      <div class="actions" role="group" aria-label="Language">
        <Button size="small" aria-pressed={!isPython} onClick={() => setPython(false)}>
          curl
        </Button>
        <Button size="small" aria-pressed={isPython} onClick={() => setPython(true)}>
          Python
        </Button>
      </div>
      <Code text={text} label={isPython ? "Python program" : "curl command"} />
      <p class="faint">
        It reads your API key from the environment, as <code>SERVING_API_KEY</code>.
      </p>
    </Dialog>
  );
}

function indented(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // not whole yet
  }
}
