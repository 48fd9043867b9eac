/** Shell: what is around every view, and which views there are for whom. */

import type { ComponentType } from "preact";
import { useEffect } from "preact/hooks";
import { Audit } from "./audit";
import { Batches } from "./batches";
import { Keys } from "./keys";
import { useRead } from "./live";
import { Models } from "./models";
import { Button, Empty, Heading, Mark } from "./parts";
import { Playground } from "./playground";
import { go, href, useRoute, type Route } from "./route";
import type { BatchList, Role, SignedIn } from "./shapes";
import { Tenants } from "./tenants";
import { Use } from "./use";

type View = ComponentType<{ route: Route; session: SignedIn }>;

interface Place {
  name: string;
  title: string;
  view: View;
  /** Who has it. */
  roles: readonly Role[];
}

const ALL: readonly Role[] = ["member", "tenant_admin", "platform_admin"];
const ADMINS: readonly Role[] = ["tenant_admin", "platform_admin"];
const PLATFORM: readonly Role[] = ["platform_admin"];

const PLACES: readonly Place[] = [
  { name: "playground", title: "Playground", view: Playground, roles: ALL },
  { name: "keys", title: "Keys", view: Keys, roles: ALL },
  { name: "use", title: "Use and limits", view: Use, roles: ALL },
  { name: "batches", title: "Batches", view: Batches, roles: ALL },
  { name: "models", title: "Models", view: Models, roles: PLATFORM },
  { name: "tenants", title: "Tenants", view: Tenants, roles: PLATFORM },
  { name: "audit", title: "Audit", view: Audit, roles: ADMINS },
];

export function Shell({ session, onSignOut }: { session: SignedIn; onSignOut: () => void }) {
  const route = useRoute();
  const { who } = session;
  // Where the gateway has no batches, neither has the page.
  const batches = useRead<BatchList>("/v1/batches?limit=1");
  const isThere = (it: Place) =>
    it.roles.includes(who.role) && (it.name !== "batches" || (!!batches.value && !batches.failure));
  const places = PLACES.filter(isThere);
  const isNew = !route.view || route.view === "sign-in";
  useEffect(() => {
    if (isNew) go(who.role === "platform_admin" ? "models" : "playground", {}, true);
  }, [isNew]);
  if (isNew) return null;

  const place = places.find((it) => it.name === route.view);
  return (
    <div class="shell">
      <a class="skip" href="#main" onClick={skip}>
        Skip to the content
      </a>
      <header class="top">
        <a class="brand" href={href("")}>
          <Mark />
          {session.service}
        </a>
        <nav aria-label="Views">
          <ul>
            {places.map((it) => (
              <li key={it.name}>
                <a href={href(it.name)} aria-current={it === place ? "page" : undefined}>
                  {it.title}
                </a>
              </li>
            ))}
          </ul>
        </nav>
        <div class="who">
          <p>
            <span class="strong">{who.user ?? who.key_name ?? who.key_id}</span>
            <br />
            <span class="faint">
              {who.tenant} · {ROLES[who.role]}
            </span>
          </p>
          <Button size="small" onClick={onSignOut}>
            Sign out
          </Button>
        </div>
      </header>
      <main id="main" tabIndex={-1}>
        {place ? <place.view key={place.name} route={route} session={session} /> : <Nowhere isSettled={settled(batches)} />}
      </main>
    </div>
  );
}

export const ROLES: Record<Role, string> = {
  member: "Member",
  tenant_admin: "Tenant administrator",
  platform_admin: "Platform administrator",
};

const settled = (it: { value: unknown; failure: unknown }): boolean => !!it.value || !!it.failure;

/** The address is the view's: a link into the page would leave it. */
function skip(event: Event): void {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

function Nowhere({ isSettled }: { isSettled: boolean }) {
  if (!isSettled) return null;
  return (
    <>
      <Heading title="Not here" />
      <Empty title="There is no such page, or not for you.">Choose one from the navigation.</Empty>
    </>
  );
}
