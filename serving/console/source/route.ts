/** Route: what the page shows is in its address, behind the `#`: `#/audit?tenant=acme`. Links, reloads and "back" work by it. */

import { useEffect, useState } from "preact/hooks";

export interface Route {
  /** Such as `audit`. */
  view: string;
  parameters: Record<string, string>;
}

export function parse(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  return { view: path, parameters: Object.fromEntries(new URLSearchParams(query)) };
}

export function href(view: string, parameters: Record<string, string | undefined> = {}): string {
  const said = Object.entries(parameters).filter((it): it is [string, string] => !!it[1]);
  return `#/${view}${said.length ? `?${new URLSearchParams(said)}` : ""}`;
}

/** Show something else; `replace` leaves no step for "back". */
export function go(view: string, parameters: Record<string, string | undefined> = {}, replace = false): void {
  const address = href(view, parameters);
  if (address === location.hash) return;
  if (!replace) {
    location.hash = address;
    return;
  }
  history.replaceState(null, "", address);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

export function useRoute(): Route {
  const [route, setRoute] = useState(() => parse(location.hash));
  useEffect(() => {
    const follow = () => setRoute(parse(location.hash));
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return route;
}
