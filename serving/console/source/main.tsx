/** Main: who is signed in decides between the sign-in page and the shell. */

import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ask, asFailure, read, whenSignedOut, type Failure } from "./api";
import { Button, Waiting, Wrong } from "./parts";
import { forgetPlayground } from "./playground";
import type { Session, SignedIn } from "./shapes";
import { Shell } from "./shell";
import { SignIn } from "./sign-in";

function Console() {
  const [session, setSession] = useState<Session>();
  const [failure, setFailure] = useState<Failure>();
  const [hasEnded, setEnded] = useState(false);
  const person = useRef("");
  const look = async () => {
    setFailure(undefined);
    try {
      setSession(await read<Session>("/console/session"));
    } catch (error) {
      setFailure(asFailure(error));
    }
  };
  useEffect(() => {
    void look();
    whenSignedOut(() => {
      setEnded(true);
      void look();
    });
  }, []);

  const signIn = (it: Session) => {
    if (person.current && person.current !== personOf(it)) forgetPlayground();
    setEnded(false);
    setSession(it);
  };
  const signOut = async () => {
    try {
      await ask("/console/session", { method: "DELETE" });
    } catch (error) {
      setFailure(asFailure(error));
      return;
    }
    forgetPlayground();
    location.hash = "";
    void look();
  };

  if (failure) {
    return (
      <main class="alone">
        <Wrong failure={failure} />
        <Button onClick={() => void look()}>Try again</Button>
      </main>
    );
  }
  if (!session) {
    return (
      <main class="alone">
        <Waiting />
      </main>
    );
  }
  person.current = personOf(session) || person.current;
  if (!isSignedIn(session)) return <SignIn session={session} hasEnded={hasEnded} onSignedIn={signIn} />;
  return <Shell session={session} onSignOut={signOut} />;
}

const isSignedIn = (session: Session): session is SignedIn => session.who !== null;

/** What tells one from another who signs in behind them; "" for nobody. */
const personOf = ({ who }: Session): string => (who ? `${who.tenant} ${who.key_id} ${who.user}` : "");

render(<Console />, document.body);
