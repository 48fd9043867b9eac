/** Tenants: paying teams, and how much of their limits they have used. */

import { useState } from "preact/hooks";
import { money, sentence, short } from "./format";
import { labelOf, Limits, saidOf, tightest } from "./limits";
import { usePages, useRead } from "./live";
import { Button, Dialog, Empty, Heading, Meter, More, State, Table, Waiting, When, Wrong, type Column } from "./parts";
import { withQuery } from "./api";
import { href, type Route } from "./route";
import type { Limit, Policy, SignedIn, Tenant } from "./shapes";

export function Tenants({ session }: { route: Route; session: SignedIn }) {
  const tenants = usePages<Tenant>((after) => withQuery("/admin/v1/tenants", { after, limit: 50 }), "tenants");
  const [shown, setShown] = useState<Tenant>();
  const columns: Column<Tenant>[] = [
    { title: "Tenant", cell: (it) => it.name },
    { title: "State", cell: (it) => <State name={it.disabled_at === null ? "active" : "disabled"} /> },
    { title: "Priority", cell: (it) => `${it.policy.priority ?? "standard"}${weight(it.policy)}` },
    { title: "Closest limit", cell: (it) => <Closest tenant={it} currency={session.currency} /> },
    { title: "Since", cell: (it) => <When at={it.created_at} /> },
    {
      title: "More",
      cell: (it) => (
        <div class="actions">
          <Button size="small" onClick={() => setShown(it)}>
            Limits<span class="unseen"> of {it.name}</span>
          </Button>
          <a class="button plain small" href={href("keys", { tenant: it.name })}>
            Keys<span class="unseen"> of {it.name}</span>
          </a>
          <a class="button plain small" href={href("audit", { tenant: it.name })}>
            Audit<span class="unseen"> of {it.name}</span>
          </a>
        </div>
      ),
    },
  ];
  return (
    <>
      <Heading title="Tenants" />
      <Wrong failure={tenants.failure} retry={tenants.reload} />
      {!tenants.items && !tenants.failure && <Waiting />}
      {tenants.items?.length === 0 && (
        <Empty title="No tenants yet">
          <code>serving tenants create NAME</code> makes one.
        </Empty>
      )}
      {!!tenants.items?.length && (
        <Table caption="Tenants" columns={columns} rows={tenants.items} keyOf={(it) => it.id} />
      )}
      <More {...tenants} />
      {shown && <About tenant={shown} currency={session.currency} onClose={() => setShown(undefined)} />}
    </>
  );
}

const weight = (policy: Policy): string => (policy.weight === undefined ? "" : `, weight ${policy.weight}`);
const limitsOf = (tenant: Tenant): string => `/admin/v1/tenants/${encodeURIComponent(tenant.name)}/limits`;

/** Of a row: the limit that is used up furthest. Tenants without limits are not asked for. */
function Closest({ tenant, currency }: { tenant: Tenant; currency: string }) {
  const limits = useRead<{ data: Limit[] }>(isBounded(tenant.policy) ? limitsOf(tenant) : null);
  if (!isBounded(tenant.policy)) return <span class="faint">no limits</span>;
  if (limits.failure) return <span class="faint">{limits.failure.message}</span>;
  if (!limits.value) return <span class="faint">…</span>;
  const closest = tightest(limits.value.data);
  if (!closest) return <span class="faint">no limits</span>;
  const said = saidOf({ ...closest, resets_at: null }, currency, 0);
  return <Meter label={labelOf(closest)} used={closest.used} limit={closest.limit} said={said} />;
}

/** What of a policy counts something. */
const BOUNDS: readonly (keyof Policy)[] = [
  ...(["requests_per_minute", "tokens_per_minute", "tokens_per_day", "tokens_per_month", "open_requests"] as const),
  ...(["monthly_budget", "per_model"] as const),
];

const isBounded = (policy: Policy): boolean => BOUNDS.some((it) => policy[it] !== undefined);

function About({ tenant, currency, onClose }: { tenant: Tenant; currency: string; onClose: () => void }) {
  const limits = useRead<{ data: Limit[] }>(limitsOf(tenant), 5000);
  return (
    <Dialog title={tenant.name} onClose={onClose}>
      <Wrong failure={limits.failure} retry={limits.reload} />
      {!limits.value && !limits.failure && <Waiting />}
      {limits.value && <Limits limits={limits.value.data} currency={currency} now={Date.now() / 1000} isOfOne />}
      <h3>Policy</h3>
      <dl class="facts-list">
        {Object.entries(tenant.policy).map(([name, value]) => (
          <div key={name}>
            <dt>{sentence(name)}</dt>
            <dd>{written(name, value, currency)}</dd>
          </div>
        ))}
      </dl>
      {!Object.keys(tenant.policy).length && <p class="faint">None is set: all models, no bounds.</p>}
      <p class="faint">
        <code>serving policies set {tenant.name}</code> changes it.
      </p>
    </Dialog>
  );
}

function written(name: string, value: unknown, currency: string): string {
  if (name === "weight") return String(value);
  if (typeof value === "number") return short(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (name === "monthly_budget") {
    const { soft, hard } = value as NonNullable<Policy["monthly_budget"]>;
    const parts = [soft !== undefined && `soft ${money(soft * 1e6, currency)}`, hard !== undefined && `hard ${money(hard * 1e6, currency)}`];
    return parts.filter(Boolean).join(", ");
  }
  if (Array.isArray(value)) return value.join(", ") || "none";
  if (typeof value === "object" && value !== null) {
    return Object.entries(value).map(([model, limits]) => `${model}: ${inner(limits)}`).join("; ");
  }
  return String(value);
}

const inner = (limits: Record<string, number>): string =>
  Object.entries(limits).map(([name, value]) => `${short(value)} ${name.replace(/_/g, " ")}`).join(", ");
