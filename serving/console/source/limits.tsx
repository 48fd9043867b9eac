/** Limits: how much of each is used. */

import { duration, money, sentence, short } from "./format";
import { Empty, Meter } from "./parts";
import type { Limit } from "./shapes";

const WHAT: Record<string, string> = {
  budget: "Budget of the month",
  soft_budget: "Soft budget of the month",
  open_requests: "Open requests",
};

const MONEY = ["budget", "soft_budget"];

/** `isOfOne`: all are one tenant's, which need not be said with each. */
export function Limits({
  limits,
  currency,
  now,
  isOfOne,
}: {
  limits: Limit[];
  currency: string;
  now: number;
  isOfOne?: boolean;
}) {
  if (!limits.length) return <Empty title="No limits">Nothing bounds these calls but the size of the fleet.</Empty>;
  return (
    <ul class="limits">
      {limits.map((it) => (
        <li key={`${it.of} ${it.what} ${it.model}`}>
          <Meter label={isOfOne ? labelOf(it) : `${labelOf(it)} (${it.of})`} used={it.used} limit={it.limit} said={saidOf(it, currency, now)} />
        </li>
      ))}
    </ul>
  );
}

/** The limit that is used up furthest. */
export function tightest(limits: Limit[]): Limit | undefined {
  const ratio = (it: Limit) => (it.limit > 0 ? it.used / it.limit : 1);
  return [...limits].sort((one, other) => ratio(other) - ratio(one))[0];
}

export function labelOf(it: Limit): string {
  return `${WHAT[it.what] ?? sentence(it.what)}${it.model ? ` of ${it.model}` : ""}`;
}

export function saidOf(it: Limit, currency: string, now: number): string {
  const write = (value: number) => (MONEY.includes(it.what) ? money(value, currency) : short(value));
  const used = `${write(it.used)} of ${write(it.limit)}`;
  return it.resets_at && it.used > 0 ? `${used}, free again in ${duration(Math.max(0, it.resets_at - now))}` : used;
}
