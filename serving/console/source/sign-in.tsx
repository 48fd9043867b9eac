/** Sign-in: by the company's single sign-on, or by an API key, which becomes a cookie that scripts cannot read. */

import { useEffect, useState } from "preact/hooks";
import { asFailure, read, type Failure } from "./api";
import { Button, Field, Mark, Notice, Wrong } from "./parts";
import { useRoute } from "./route";
import type { Session } from "./shapes";

const SAID: Record<string, string> = {
  denied: "You are known, but nothing here is open to you: ask a platform administrator for access.",
  expired: "Signing in took too long. Please start again.",
  refused: "The sign-on service did not confirm who you are. Please start again.",
  unavailable: "The sign-on service does not answer. Please try again in a moment.",
};

export function SignIn({
  session,
  hasEnded,
  onSignedIn,
}: {
  session: Session;
  hasEnded: boolean;
  onSignedIn: (session: Session) => void;
}) {
  const { parameters } = useRoute();
  const error = parameters.error && (SAID[parameters.error] ?? "Signing in did not work. Please start again.");
  useEffect(() => {
    document.title = `Sign in · ${session.service}`;
  }, []);
  return (
    <main class="alone sign-in">
      <h1>
        <Mark />
        {session.service}
      </h1>
      {hasEnded && !error && <Notice kind="note">Your session has ended: please sign in again.</Notice>}
      {error && <Notice kind="bad">{error}</Notice>}
      {session.sign_ins.map((it) => (
        <a key={it.issuer} class="button main wide" href={it.url}>
          Sign in with {it.title}
        </a>
      ))}
      {session.sign_ins.length > 0 && <p class="or faint">or</p>}
      <WithKey isMain={!session.sign_ins.length} onSignedIn={onSignedIn} />
    </main>
  );
}

function WithKey({ isMain, onSignedIn }: { isMain: boolean; onSignedIn: (session: Session) => void }) {
  const [key, setKey] = useState("");
  const [failure, setFailure] = useState<Failure>();
  const [isBusy, setBusy] = useState(false);
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    try {
      onSignedIn(await read<Session>("/console/session", { method: "POST", body: { key: key.trim() } }));
    } catch (error) {
      setFailure(asFailure(error));
      setBusy(false);
    }
  };
  return (
    <form onSubmit={submit}>
      <Wrong failure={failure} />
      <Field label="API key" hint="It opens a session in this browser and is not kept by the page.">
        {(ties) => (
          <input
            {...ties}
            type="password"
            name="key"
            autocomplete="current-password"
            spellcheck={false}
            required
            value={key}
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        )}
      </Field>
      <Button kind={isMain ? "main" : "plain"} size="wide" type="submit" disabled={isBusy}>
        {isBusy ? "Signing in …" : "Sign in with the key"}
      </Button>
    </form>
  );
}
