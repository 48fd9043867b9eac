/** API: every request of the page. The session is a cookie that scripts cannot read; no key passes through here but at sign-in. */

/** Why a request was not answered as asked, in a sentence for people. */
export class Failure extends Error {
  readonly status: number;
  readonly code: string | null;
  readonly requestId: string | null;

  constructor(message: string, status: number, code: string | null, requestId: string | null) {
    super(message);
    this.status = status;
    this.code = code;
    this.requestId = requestId;
  }
}

export interface Asked {
  method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

/** Called when the gateway says that nobody is signed in any more. */
let onSignedOut: () => void = () => {};

export function whenSignedOut(then: () => void): void {
  onSignedOut = then;
}

/** The answer as it comes; throws Failure for one that refuses, and for none at all. */
export async function ask(path: string, asked: Asked = {}): Promise<Response> {
  const headers: Record<string, string> = { "X-Console": "1", ...asked.headers };
  if (asked.body !== undefined) headers["Content-Type"] = "application/json";
  const init: RequestInit = { method: asked.method ?? "GET", headers, credentials: "same-origin", cache: "no-store" };
  if (asked.body !== undefined) init.body = JSON.stringify(asked.body);
  if (asked.signal) init.signal = asked.signal;
  let answer: Response;
  try {
    answer = await fetch(path, init);
  } catch (error) {
    if (asked.signal?.aborted) throw error;
    throw new Failure("The gateway cannot be reached: check the network, then try again.", 0, null, null);
  }
  if (answer.ok) return answer;
  const failure = await failureOf(answer);
  if (answer.status === 401 && path !== "/console/session") onSignedOut();
  throw failure;
}

/** The answer's document. */
export async function read<Shape>(path: string, asked: Asked = {}): Promise<Shape> {
  return (await ask(path, asked)).json() as Promise<Shape>;
}

type Said = string | number | undefined | null;

/** A path with those parameters that say something; a list is a parameter several times. */
export function withQuery(path: string, parameters: Record<string, Said | readonly string[]>): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null && one !== "") query.append(name, String(one));
    }
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

/** Any thrown thing as a Failure. */
export function asFailure(error: unknown): Failure {
  if (error instanceof Failure) return error;
  return new Failure(error instanceof Error ? error.message : String(error), 0, null, null);
}

async function failureOf(answer: Response): Promise<Failure> {
  const requestId = answer.headers.get("x-request-id");
  let said: { message?: string; code?: string | null } = {};
  try {
    said = ((await answer.json()) as { error?: typeof said }).error ?? {};
  } catch {
    // Something between the page and the gateway answered: it has no sentence for us.
  }
  const message = said.message || `The gateway answered ${answer.status} and gave no reason.`;
  const wait = answer.headers.get("retry-after");
  const advice = answer.status === 429 && wait ? ` It can be tried again in ${wait} s.` : "";
  return new Failure(message + advice, answer.status, said.code ?? null, requestId);
}
