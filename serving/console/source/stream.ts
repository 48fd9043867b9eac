/** Stream: the events of a streamed chat, as they come. */

import { Failure } from "./api";

interface Delta {
  content?: string | null;
  reasoning?: string | null;
  reasoning_content?: string | null;
  tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[];
}

export interface Chunk {
  choices?: { delta?: Delta; finish_reason?: string | null }[];
  usage?: Usage | null;
  error?: { message?: string; code?: string | null };
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number } | null;
  completion_tokens_details?: { reasoning_tokens?: number } | null;
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

/** What has come of one answer. */
export interface Answer {
  reasoning: string;
  text: string;
  calls: ToolCall[];
  finish: string | null;
  usage: Usage | null;
}

export const nothing = (): Answer => ({ reasoning: "", text: "", calls: [], finish: null, usage: null });

/** The answer with one more event; throws Failure for one that says the stream has failed. */
export function grown(answer: Answer, chunk: Chunk, requestId: string | null): Answer {
  if (chunk.error) throw new Failure(chunk.error.message ?? "The stream failed.", 0, chunk.error.code ?? null, requestId);
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  const calls = (delta.tool_calls ?? []).reduce((before, it) => {
    const known = before[it.index] ?? { id: "", name: "", arguments: "" };
    const after = [...before];
    after[it.index] = {
      id: it.id ?? known.id,
      name: it.function?.name ?? known.name,
      arguments: known.arguments + (it.function?.arguments ?? ""),
    };
    return after;
  }, answer.calls);
  return {
    reasoning: answer.reasoning + (delta.reasoning ?? delta.reasoning_content ?? ""),
    text: answer.text + (delta.content ?? ""),
    calls,
    finish: choice?.finish_reason ?? answer.finish,
    usage: chunk.usage ?? answer.usage,
  };
}

/** The data of each event; comments, which keep connections open, are passed over. */
export async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}
