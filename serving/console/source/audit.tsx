/** Audit: who did what and when. What it says is never a prompt, an answer or a key. */

import { withQuery } from "./api";
import { usePages, useRead } from "./live";
import { Choice, Empty, Field, Heading, More, Table, Waiting, When, Wrong, type Column } from "./parts";
import { go, type Route } from "./route";
import type { AuditEvent, Page, SignedIn, Tenant } from "./shapes";

const PAGE = 100;

/** What may be looked for together; each name is a kind of entry. */
export const KINDS: Record<string, readonly string[]> = {
  changes: [
    ...["tenant.create", "tenant.update", "key.create", "key.update", "key.rotate", "key.revoke", "key.withdraw"],
    ...["price.set", "price.remove", "user.erase", "stored.erase"],
  ],
  calls: ["call", "lost"],
  "sign-ins": ["sign_in", "sign_in.refused", "session.begin", "session.end"],
  reads: ["users.read", "usage.read", "audit.read", "stored.read"],
  store: ["audit.prune", "store.migrate", "store.backup", "store.restore", "vault.rewrap"],
};
const WHAT = [
  ["all", "Everything"],
  ["changes", "Changes by administrators"],
  ["calls", "Calls"],
  ["sign-ins", "Sign-ins and refusals"],
  ["reads", "Reads of use, audit and stored responses"],
  ["store", "The database"],
] as const;
const PERIODS = [
  ["1", "The last hour"],
  ["24", "The last day"],
  ["168", "The last week"],
  ["720", "The last 30 days"],
  ["all", "From the beginning"],
] as const;

export function Audit({ route, session }: { route: Route; session: SignedIn }) {
  const { what = "changes", tenant = "", hours = "24", text = "" } = route.parameters;
  const isPlatform = session.who.role === "platform_admin";
  const tenants = useRead<Page<Tenant>>(isPlatform ? "/admin/v1/tenants?limit=500" : null);
  const pathOf = (after: string | null) => {
    const since = hours !== "all" && new Date(Date.now() - Number(hours) * 3_600_000).toISOString();
    return withQuery("/admin/v1/audit", { kind: KINDS[what] ?? [], tenant, since: since || null, after, limit: PAGE });
  };
  const events = usePages<AuditEvent>(pathOf, `${what} ${tenant} ${hours}`);
  const set = (changes: Record<string, string>) => go("audit", { ...route.parameters, ...changes }, true);
  const names = new Map(tenants.value?.data.map((it) => [it.id, it.name]));
  const found = events.items?.filter((it) => matches(it, text, names));
  return (
    <>
      <Heading title="Audit" />
      <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
        <Choice label="What" value={what} options={WHAT} onChange={(it) => set({ what: it })} />
        {isPlatform && (
          <Choice
            label="Tenant"
            value={tenant}
            options={[["", "All tenants"], ...[...names.values()].map((it) => [it, it] as const)]}
            onChange={(it) => set({ tenant: it })}
          />
        )}
        <Choice label="When" value={hours} options={PERIODS} onChange={(it) => set({ hours: it })} />
        <Field label="Contains">
          {(ties) => (
            <input
              {...ties}
              type="search"
              value={text}
              placeholder="an id, a name, a word"
              onInput={(event) => set({ text: event.currentTarget.value })}
            />
          )}
        </Field>
      </form>
      <Wrong failure={events.failure} retry={events.reload} />
      {!found && !events.failure && <Waiting />}
      {found?.length === 0 && (
        <Empty title="Nothing found">
          {text && events.next
            ? "Among the entries that are loaded, none contains that: load more, or choose a shorter time."
            : "Choose a longer time, or look for something else."}
        </Empty>
      )}
      {!!found?.length && (
        <Table
          caption="Audit entries, oldest first"
          columns={columns(names)}
          rows={found}
          keyOf={(it) => `${it.writer} ${it.number} ${it.at} ${it.subject}`}
        />
      )}
      <More {...events} />
    </>
  );
}

function matches(event: AuditEvent, text: string, names: Map<string, string>): boolean {
  if (!text) return true;
  const said = `${JSON.stringify(event)} ${names.get(event.tenant_id) ?? ""}`;
  return said.toLowerCase().includes(text.toLowerCase());
}

const columns = (names: Map<string, string>): Column<AuditEvent>[] => [
  { title: "When", cell: (it) => <When at={it.at} /> },
  { title: "What", cell: (it) => <span class="strong">{it.kind}</span> },
  { title: "By", cell: (it) => <By of={it} /> },
  { title: "To", cell: (it) => <code>{it.subject || "–"}</code> },
  { title: "Tenant", cell: (it) => names.get(it.tenant_id) ?? (it.tenant_id ? <code>{it.tenant_id}</code> : "–") },
  { title: "Details", cell: (it) => <Details of={it} /> },
];

function By({ of: event }: { of: AuditEvent }) {
  const { key_id: key, user_ref: user, os_user: operator, host, role } = event.by as Record<string, string | undefined>;
  if (operator) {
    return (
      <>
        {operator} <span class="faint">on {host}</span>
      </>
    );
  }
  return (
    <>
      <code>{user ?? key ?? "–"}</code> <span class="faint">{role?.replace("_", " ")}</span>
    </>
  );
}

function Details({ of: event }: { of: AuditEvent }) {
  const text = JSON.stringify(event.details, null, 2);
  if (text === "{}") return <span class="faint">–</span>;
  return (
    <details>
      <summary>
        Show<span class="unseen"> details of {event.kind}</span>
      </summary>
      <pre tabIndex={0} role="region" aria-label={`Details of ${event.kind}`}>
        {text}
      </pre>
    </details>
  );
}
