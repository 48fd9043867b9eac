/** Keys: a member sees its own; administrators create, rotate and revoke. A new key is shown once. */

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { ask, asFailure, read, withQuery, type Failure } from "./api";
import { duration } from "./format";
import { usePages, useRead } from "./live";
import {
  Button,
  Choice,
  Copy,
  Dialog,
  Empty,
  Field,
  Heading,
  More,
  Notice,
  State,
  Table,
  Waiting,
  When,
  Wrong,
  type Column,
} from "./parts";
import { go, type Route } from "./route";
import { ROLES } from "./shell";
import type { Key, KeyMade, Me, Page, Policy, Role, SignedIn, Tenant } from "./shapes";

type Doing = { kind: "create" } | { kind: "rotate"; key: Key } | { kind: "revoke"; key: Key };

export function Keys({ route, session }: { route: Route; session: SignedIn }) {
  return session.who.role === "member" ? <OwnKey /> : <Administered route={route} session={session} />;
}

function OwnKey() {
  const { value: me, failure, reload } = useRead<Me>("/admin/v1/me");
  return (
    <>
      <Heading title="Keys" />
      <Wrong failure={failure} retry={reload} />
      {!me && !failure && <Waiting />}
      {me && !me.key && (
        <Empty title="You use no key">
          You signed in by single sign-on: programs can send its tokens, or a key that your tenant's administrator makes.
        </Empty>
      )}
      {me?.key && (
        <>
          <Table caption="Your key" columns={COLUMNS} rows={[me.key]} keyOf={(it) => it.id} />
          <p class="faint">A tenant administrator can make more keys, replace this one, or revoke it.</p>
        </>
      )}
    </>
  );
}

const COLUMNS: Column<Key>[] = [
  {
    title: "Key",
    cell: (it) => (
      <>
        {it.name || <span class="faint">unnamed</span>} <code class="faint">{it.id}</code>
      </>
    ),
  },
  { title: "State", cell: (it) => <State name={it.state} /> },
  { title: "Role", cell: (it) => ROLES[it.role] },
  { title: "Created", cell: (it) => <When at={it.created_at} /> },
  { title: "Expires", cell: (it) => <When at={it.expires_at} none="never" /> },
  { title: "Last used", cell: (it) => <When at={it.last_used_at} none="never" /> },
];
const TENANT: Column<Key> = { title: "Tenant", cell: (it) => it.tenant };

function Administered({ route, session }: { route: Route; session: SignedIn }) {
  const { who } = session;
  const isPlatform = who.role === "platform_admin";
  const tenants = useRead<Page<Tenant>>(isPlatform ? "/admin/v1/tenants?limit=500" : null);
  const tenant = isPlatform ? (route.parameters.tenant ?? "") : who.tenant;
  const isRevokedShown = route.parameters.revoked === "yes";
  const path = tenant ? `/admin/v1/tenants/${encodeURIComponent(tenant)}/keys` : "/admin/v1/keys";
  const keys = usePages<Key>((after) => withQuery(path, { after, limit: 100 }), path);
  const [doing, setDoing] = useState<Doing>();
  const [made, setMade] = useState<KeyMade>();
  const set = (changes: Record<string, string>) => go("keys", { ...route.parameters, ...changes }, true);
  const done = (it?: KeyMade) => {
    setDoing(undefined);
    setMade(it);
    keys.reload();
  };
  const actions: Column<Key> = {
    title: "Actions",
    cell: (it) => it.state !== "revoked" && <RowActions of={it} role={who.role} onDo={setDoing} />,
  };
  const shown = keys.items?.filter((it) => isRevokedShown || it.state !== "revoked");
  return (
    <>
      <Heading title="Keys">
        <Button kind="main" onClick={() => setDoing({ kind: "create" })}>
          Create key
        </Button>
      </Heading>
      <div class="filters">
        {isPlatform && (
          <Choice
            label="Tenant"
            value={tenant}
            options={[["", "All tenants"], ...namesOf(tenants.value, tenant)]}
            onChange={(it) => set({ tenant: it })}
          />
        )}
        <label class="check">
          <input
            type="checkbox"
            checked={isRevokedShown}
            onChange={(event) => set({ revoked: event.currentTarget.checked ? "yes" : "" })}
          />
          Show revoked keys
        </label>
      </div>
      <Wrong failure={keys.failure} retry={keys.reload} />
      {!shown && !keys.failure && <Waiting />}
      {shown?.length === 0 && (
        <Empty title="No keys here yet">Create one for each program or person, so that each can be revoked alone.</Empty>
      )}
      {!!shown?.length && (
        <Table
          caption="Keys"
          columns={[COLUMNS[0]!, ...(tenant ? [] : [TENANT]), ...COLUMNS.slice(1), actions]}
          rows={shown}
          keyOf={(it) => it.id}
        />
      )}
      <More {...keys} />
      {doing?.kind === "create" && (
        <Create who={who} tenant={tenant} tenants={tenants.value} onClose={() => setDoing(undefined)} onMade={done} />
      )}
      {doing?.kind === "rotate" && <Rotate of={doing.key} onClose={() => setDoing(undefined)} onMade={done} />}
      {doing?.kind === "revoke" && <Revoke of={doing.key} onClose={() => setDoing(undefined)} onDone={done} />}
      {made && <Made of={made} onClose={() => setMade(undefined)} />}
    </>
  );
}

const namesOf = (page: Page<Tenant> | undefined, chosen: string): [string, string][] => {
  const names = page?.data.map((it) => it.name) ?? [];
  return (chosen && !names.includes(chosen) ? [chosen, ...names] : names).map((it) => [it, it]);
};

function RowActions({ of: key, role, onDo }: { of: Key; role: Role; onDo: (doing: Doing) => void }) {
  if (key.role === "platform_admin" && role !== "platform_admin") return <span class="faint">the platform's</span>;
  const named = <span class="unseen"> {key.name || key.id}</span>;
  return (
    <div class="actions">
      <Button size="small" onClick={() => onDo({ kind: "rotate", key })}>
        Rotate{named}
      </Button>
      <Button size="small" kind="danger" onClick={() => onDo({ kind: "revoke", key })}>
        Revoke{named}
      </Button>
    </div>
  );
}

/** A dialog that sends what it asks for, with a button that says what that does; it stays, with the reason, where it fails. */
function Sending(props: {
  title: string;
  does: string;
  kind?: "main" | "danger";
  send: () => Promise<void>;
  onClose: () => void;
  children: ComponentChildren;
}) {
  const [isBusy, setBusy] = useState(false);
  const [failure, setFailure] = useState<Failure>();
  const submit = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await props.send();
    } catch (error) {
      setFailure(asFailure(error));
      setBusy(false);
    }
  };
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      <form onSubmit={(event) => void submit(event)}>
        {props.children}
        <Wrong failure={failure} />
        <div class="actions end">
          <Button onClick={props.onClose}>Cancel</Button>
          <Button kind={props.kind ?? "main"} type="submit" disabled={isBusy}>
            {props.does}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

const LIFETIMES = [
  ["", "Never"],
  ["2592000", "In 30 days"],
  ["7776000", "In 90 days"],
  ["31536000", "In a year"],
] as const;

function Create({
  who,
  tenant,
  tenants,
  onClose,
  onMade,
}: {
  who: SignedIn["who"];
  tenant: string;
  tenants: Page<Tenant> | undefined;
  onClose: () => void;
  onMade: (made: KeyMade) => void;
}) {
  const [wanted, setWanted] = useState({ tenant: tenant || who.tenant, name: "", role: "member", lifetime: "", day: "" });
  const send = async () => {
    const policy: Policy = wanted.day ? { tokens_per_day: Number(wanted.day) } : {};
    const body = {
      ...{ name: wanted.name.trim(), role: wanted.role, policy },
      ...(wanted.lifetime && { lifetime_s: Number(wanted.lifetime) }),
    };
    const path = `/admin/v1/tenants/${encodeURIComponent(wanted.tenant)}/keys`;
    onMade(await read<KeyMade>(path, { method: "POST", body }));
  };
  const set = (changes: Partial<typeof wanted>) => setWanted({ ...wanted, ...changes });
  const isPlatform = who.role === "platform_admin";
  const roles = (Object.keys(ROLES) as Role[]).filter((it) => isPlatform || it !== "platform_admin");
  return (
    <Sending title="Create key" does="Create" send={send} onClose={onClose}>
      <Field label="Name" hint="What it is for, such as “nightly report”.">
        {(ties) => (
          <input
            {...ties}
            value={wanted.name}
            maxLength={100}
            required
            autofocus
            onInput={(event) => set({ name: event.currentTarget.value })}
          />
        )}
      </Field>
      {isPlatform && (
        <Choice
          label="Tenant"
          value={wanted.tenant}
          options={namesOf(tenants, wanted.tenant)}
          onChange={(it) => set({ tenant: it })}
        />
      )}
      <div class="pair">
        <Choice
          label="Role"
          value={wanted.role}
          options={roles.map((it) => [it, ROLES[it]] as const)}
          onChange={(it) => set({ role: it })}
        />
        <Choice label="Expires" value={wanted.lifetime} options={LIFETIMES} onChange={(it) => set({ lifetime: it })} />
      </div>
      <Field label="Tokens per day" hint="Left empty, only the tenant's own limits bound it.">
        {(ties) => (
          <input
            {...ties}
            type="number"
            min="0"
            step="1"
            value={wanted.day}
            onInput={(event) => set({ day: event.currentTarget.value })}
          />
        )}
      </Field>
    </Sending>
  );
}

const GRACES = [
  ["0", "At once"],
  ["3600", "After an hour"],
  ["86400", "After a day"],
  ["604800", "After a week"],
] as const;

function Rotate({ of: key, onClose, onMade }: { of: Key; onClose: () => void; onMade: (made: KeyMade) => void }) {
  const [grace, setGrace] = useState("86400");
  const send = async () => {
    const body = { grace_s: Number(grace) };
    onMade(await read<KeyMade>(`/admin/v1/keys/${key.id}/rotate`, { method: "POST", body }));
  };
  return (
    <Sending title={`Rotate ${key.name || key.id}`} does="Rotate" send={send} onClose={onClose}>
      <p>A new key with the same name, role and policy takes its place.</p>
      <Choice label="The old key stops working" value={grace} options={GRACES} onChange={setGrace} />
    </Sending>
  );
}

function Revoke({ of: key, onClose, onDone }: { of: Key; onClose: () => void; onDone: () => void }) {
  const send = async () => {
    await ask(`/admin/v1/keys/${key.id}`, { method: "DELETE", headers: { "If-Match": `"${key.revision}"` } });
    onDone();
  };
  const used = key.last_used_at ? `It was last used ${duration(Date.now() / 1000 - key.last_used_at)} ago.` : "It was never used.";
  return (
    <Sending title={`Revoke ${key.name || key.id}?`} does="Revoke" kind="danger" send={send} onClose={onClose}>
      <p>
        Programs that use it are refused within two seconds, and it cannot be brought back. {used}
      </p>
    </Sending>
  );
}

function Made({ of: made, onClose }: { of: KeyMade; onClose: () => void }) {
  return (
    <Dialog title={`Key ${made.name || made.id}`} onClose={onClose}>
      <Notice kind="warn">Copy it now: it is shown this once, and only a checksum of it is stored.</Notice>
      <div class="code">
        <output class="mono" aria-label="The new key">
          {made.key}
        </output>
        <Copy text={made.key} label="Copy key" />
      </div>
      <div class="actions end">
        <Button kind="main" onClick={onClose}>
          I have it
        </Button>
      </div>
    </Dialog>
  );
}
