/** Use: what the caller has used against its limits; administrators see their tenant's, or every tenant's. */

import { withQuery } from "./api";
import { money, short, whole } from "./format";
import { Limits } from "./limits";
import { useRead } from "./live";
import { Choice, Empty, Figure, Heading, Table, Waiting, Wrong, type Column } from "./parts";
import { go, type Route } from "./route";
import type { Me, SignedIn, Sum, Tokens } from "./shapes";

const PERIODS = [
  ["1", "Today and yesterday"],
  ["7", "7 days"],
  ["30", "30 days"],
  ["90", "90 days"],
] as const;
const GROUPS = [
  ["day", "Day"],
  ["model", "Model"],
  ["key", "Key"],
  ["user", "User"],
  ["priority", "Priority"],
  ["route", "Route"],
] as const;
const PLATFORM_GROUPS = [["tenant", "Tenant"], ...GROUPS] as const;

export function Use({ route, session }: { route: Route; session: SignedIn }) {
  const me = useRead<Me>("/admin/v1/me", 30_000);
  return (
    <>
      <Heading title="Use and limits" />
      <Wrong failure={me.failure} retry={me.reload} />
      {!me.value && !me.failure && <Waiting />}
      {me.value && (
        <>
          <dl class="figures-row">
            <Own title="Today" of={me.value.today} currency={session.currency} />
            <Own title="This month" of={me.value.month} currency={session.currency} />
          </dl>
          <section>
            <h2>Limits of your calls</h2>
            <Limits limits={me.value.limits} currency={session.currency} now={Date.now() / 1000} />
          </section>
        </>
      )}
      {session.who.role !== "member" && <Sums route={route} session={session} />}
    </>
  );
}

function Own({ title, of: it, currency }: { title: string; of: Tokens; currency: string }) {
  const tokens = it.prompt_tokens + it.completion_tokens;
  const price = it.price_micros ? `, ${money(it.price_micros, currency)}` : "";
  return <Figure title={title} value={short(tokens)} about={`tokens in ${whole(it.requests)} calls${price}`} />;
}

function Sums({ route, session }: { route: Route; session: SignedIn }) {
  const isPlatform = session.who.role === "platform_admin";
  const { days = "7", by = isPlatform ? "tenant" : "day" } = route.parameters;
  const since = new Date(Date.now() - Number(days) * 86_400_000).toISOString().slice(0, 10);
  const sums = useRead<{ data: Sum[] }>(withQuery("/admin/v1/usage", { by, since, limit: 500 }));
  const set = (changes: Record<string, string>) => go("use", { ...route.parameters, ...changes }, true);
  return (
    <section>
      <h2>{isPlatform ? "All tenants" : `All of ${session.who.tenant}`}</h2>
      <div class="filters">
        <Choice label="Period" value={days} options={PERIODS} onChange={(it) => set({ days: it })} />
        <Choice label="By" value={by} options={isPlatform ? PLATFORM_GROUPS : GROUPS} onChange={(it) => set({ by: it })} />
      </div>
      <Wrong failure={sums.failure} retry={sums.reload} />
      {!sums.value && !sums.failure && <Waiting />}
      {sums.value?.data.length === 0 && <Empty title="No calls in this period" />}
      {!!sums.value?.data.length && (
        <Table
          caption={`Use by ${by}`}
          columns={columns(by, session.currency)}
          rows={ordered(sums.value.data, by)}
          keyOf={(it) => it.group}
        />
      )}
    </section>
  );
}

const total = (it: Sum, name: keyof Tokens): number => it.exact[name] + it.estimated[name];

/** Days by time, all else by how much. */
function ordered(sums: Sum[], by: string): Sum[] {
  if (by === "day") return [...sums].reverse();
  const tokens = (it: Sum) => total(it, "prompt_tokens") + total(it, "completion_tokens");
  return [...sums].sort((one, other) => tokens(other) - tokens(one));
}

function columns(by: string, currency: string): Column<Sum>[] {
  const number = (title: string, name: keyof Tokens): Column<Sum> => ({
    title,
    isNumber: true,
    cell: (it) => short(total(it, name)),
  });
  return [
    { title: by.charAt(0).toUpperCase() + by.slice(1), cell: (it) => it.label || it.group || "–" },
    number("Calls", "requests"),
    number("Prompt tokens", "prompt_tokens"),
    number("of these cached", "cached_prompt_tokens"),
    number("Output tokens", "completion_tokens"),
    number("of these reasoning", "reasoning_tokens"),
    { title: "Cost", isNumber: true, cell: (it) => money(total(it, "price_micros"), currency) },
  ];
}
