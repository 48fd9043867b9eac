/** Live: what is read from the gateway, once or again and again while somebody looks. */

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { asFailure, read, type Failure } from "./api";

export interface Loaded<Shape> {
  /** The last that was read; stays while a later request fails. */
  value: Shape | undefined;
  failure: Failure | undefined;
  reload: () => void;
}

/** The document at `path`, anew when the path changes and every `everyMs` while the page is visible; null reads nothing. */
export function useRead<Shape>(path: string | null, everyMs?: number): Loaded<Shape> {
  const [state, setState] = useState<{ path: string | null; value?: Shape; failure?: Failure }>({ path });
  const [turn, setTurn] = useState(0);
  const again = useCallback(() => setTurn((it) => it + 1), []);
  useEffect(() => {
    if (path === null) return;
    const ending = new AbortController();
    const load = async () => {
      try {
        const value = await read<Shape>(path, { signal: ending.signal });
        if (!ending.signal.aborted) setState({ path, value });
      } catch (error) {
        if (ending.signal.aborted) return;
        setState((before) => ({ ...(before.path === path ? before : {}), path, failure: asFailure(error) }));
      }
    };
    const stop = everyMs ? repeated(load, everyMs) : (void load(), () => {});
    return () => {
      ending.abort();
      stop();
    };
  }, [path, everyMs, turn]);
  const isCurrent = state.path === path;
  return { value: isCurrent ? state.value : undefined, failure: isCurrent ? state.failure : undefined, reload: again };
}

/** A list in pages: the first, and more when asked for. */
export function usePages<Item>(pathOf: (after: string | null) => string, key: string) {
  const [items, setItems] = useState<Item[]>();
  const [next, setNext] = useState<string | null>(null);
  const [failure, setFailure] = useState<Failure>();
  const [isBusy, setBusy] = useState(false);
  const current = useRef(0);
  const load = async (after: string | null) => {
    const mine = (current.current += 1);
    setBusy(true);
    try {
      const page = await read<{ data: Item[]; next: string | null }>(pathOf(after));
      if (mine !== current.current) return;
      setItems((before) => (after && before ? [...before, ...page.data] : page.data));
      setNext(page.next);
      setFailure(undefined);
    } catch (error) {
      if (mine === current.current) setFailure(asFailure(error));
    } finally {
      if (mine === current.current) setBusy(false);
    }
  };
  useEffect(() => {
    setItems(undefined);
    void load(null);
  }, [key]);
  return { items, next, failure, isBusy, more: () => void load(next), reload: () => void load(null) };
}

/** One at a time, the next so long after the last has ended; none while the page is hidden. */
function repeated(load: () => Promise<void>, everyMs: number): () => void {
  let timer = 0;
  let isOver = false;
  const turn = async () => {
    clearTimeout(timer);
    if (!document.hidden) await load();
    clearTimeout(timer);
    if (!isOver && !document.hidden) timer = setTimeout(turn, everyMs);
  };
  const onShown = () => {
    if (!document.hidden) void turn();
  };
  document.addEventListener("visibilitychange", onShown);
  void turn();
  return () => {
    isOver = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", onShown);
  };
}
