/** Models: engines and their states, what waits and for what, throughput, TTFT and goodput; live. */

import { Chart, type Series } from "./charts";
import { duration, fine, percent, plural, short, whole } from "./format";
import { useRead } from "./live";
import { Choice, Empty, Figure, Heading, Notice, State, Table, Waiting, Wrong, type Column } from "./parts";
import { go, type Route } from "./route";
import type { Activity, Fleet, FleetModel, ModelActivity, Replica, SignedIn } from "./shapes";

/** The fleet's own news come every half second; charts have a slot each 15 s. */
const FLEET_MS = 2000;
const ACTIVITY_MS = 15_000;
const PERIODS = [
  ["15", "15 minutes"],
  ["30", "30 minutes"],
  ["60", "1 hour"],
] as const;

export function Models({ route }: { route: Route; session: SignedIn }) {
  const fleet = useRead<Fleet>("/admin/v1/fleet", FLEET_MS);
  const activity = useRead<Activity>("/admin/v1/activity", ACTIVITY_MS);
  const { minutes = "30" } = route.parameters;
  const models = fleet.value?.models ?? [];
  return (
    <>
      <Heading title="Models">
        <Choice
          label="Charts"
          value={minutes}
          options={PERIODS}
          onChange={(it) => go("models", { ...route.parameters, minutes: it }, true)}
        />
      </Heading>
      <Wrong failure={fleet.failure} retry={fleet.reload} />
      {!fleet.value && !fleet.failure && <Waiting />}
      {fleet.value && (
        <>
          <Totals fleet={fleet.value} activity={activity.value} />
          <Trouble fleet={fleet.value} />
          {!models.length && (
            <Empty title="No models yet">
              No cell's directory lists any: check that the engine plane runs and that the gateway's directories are set.
            </Empty>
          )}
          {activity.value && activity.value.gateways > activity.value.covers && (
            <p class="faint">
              Charts, output and goodput are of {activity.value.covers} of {activity.value.gateways} gateway processes: the
              one that answers here, and its workers. Dashboards have all.
            </p>
          )}
          {models.map((it) => (
            <OneModel key={it.name} model={it} activity={activity.value} minutes={Number(minutes)} />
          ))}
        </>
      )}
    </>
  );
}

const sum = (values: number[]): number => values.reduce((before, it) => before + it, 0);
const waitingOf = (it: FleetModel): number => it.waiting_requests + sum(Object.values(it.queued));
const readyOf = (it: FleetModel): number => it.replicas.filter((replica) => replica.state === "ready").length;

function Totals({ fleet, activity }: { fleet: Fleet; activity: Activity | undefined }) {
  const ready = sum(fleet.models.map(readyOf));
  const all = sum(fleet.models.map((it) => Math.max(it.wanted ?? 0, it.replicas.length)));
  const running = sum(fleet.models.flatMap((it) => it.replicas.map((replica) => replica.running_requests)));
  const minute = activity && lastMinute(activity);
  return (
    <dl class="figures-row">
      <Figure title="Engines ready" value={`${ready} of ${all}`} />
      <Figure title="Running" value={whole(running)} about={running === 1 ? "call" : "calls"} />
      <Figure title="Waiting" value={whole(sum(fleet.models.map(waitingOf)))} about="in gateways" />
      <Figure title="Output" value={minute ? fine(minute.tokens) : "–"} about="tokens/s" />
      <Figure
        title="Kept their SLO"
        value={minute?.kept === undefined ? "–" : percent(minute.kept)}
        about="of the last minute"
      />
    </dl>
  );
}

/** Over the last whole minute of all models. */
function lastMinute(activity: Activity): { tokens: number; kept: number | undefined } {
  const slots = Math.round(60 / activity.slot_s);
  const of = (name: "completion_tokens" | "kept" | "judged") =>
    sum(activity.models.flatMap((it) => it[name].slice(-1 - slots, -1)));
  const judged = of("judged");
  return { tokens: of("completion_tokens") / 60, kept: judged ? of("kept") / judged : undefined };
}

/** Why something does not start, or does not run as it should. */
function Trouble({ fleet }: { fleet: Fleet }) {
  const failed = fleet.models.flatMap((model) =>
    model.replicas
      .filter((it) => it.state === "failed" || (it.state !== "ready" && it.reason))
      .map((it) => ({ key: `${it.cell} ${it.id}`, about: `${model.name} on ${it.node || it.cell}`, state: it.state, said: it.reason })),
  );
  const short = fleet.models
    .filter((it) => it.shortage)
    .map((it) => ({ key: it.name, about: it.name, state: "waiting", said: it.shortage }));
  const lost = fleet.sources
    .filter((it) => !it.is_up)
    .map((it) => ({ key: it.name, about: it.name, state: "silent", said: "It does not answer this gateway's polls." }));
  const warned = fleet.warnings.map((it) => ({ key: it, about: "", state: "warning", said: it }));
  const all = [...failed, ...short, ...lost, ...warned];
  if (!all.length) return null;
  return (
    <section aria-labelledby="trouble">
      <h2 id="trouble">What does not run, and why</h2>
      <ul class="trouble">
        {all.map((it) => (
          <li key={it.key}>
            <State name={it.state} /> {it.about && <span class="strong">{it.about}: </span>}
            <span>{it.said ?? "It gave no reason: its log on the node has more."}</span>
          </li>
        ))}
      </ul>
    </section>
  );
}

function OneModel({
  model,
  activity,
  minutes,
}: {
  model: FleetModel;
  activity: Activity | undefined;
  minutes: number;
}) {
  const own = activity?.models.find((it) => it.name === model.name);
  const engines = `${readyOf(model)} of ${plural(Math.max(model.wanted ?? 0, model.replicas.length), "engine")} ready`;
  const names = [
    model.aliases.length && `also ${model.aliases.join(", ")}`,
    model.adapters.length && `${plural(model.adapters.length, "adapter")}: ${model.adapters.join(", ")}`,
    model.context_tokens && `context ${short(model.context_tokens)}`,
    model.reason,
  ].filter(Boolean);
  return (
    <section class="panel model" aria-label={model.name}>
      <header>
        <h2>{model.name}</h2> <State name={model.state} /> <span>{engines}</span>
        <span class="faint">{names.join(" · ")}</span>
      </header>
      <Waits model={model} />
      {activity && own && <Charts of={own} activity={activity} minutes={minutes} />}
      {activity && !own && <p class="faint">No calls in the last hour.</p>}
      {model.replicas.length ? (
        <Table
          caption={`Engines of ${model.name}`}
          columns={REPLICA}
          rows={model.replicas}
          keyOf={(it) => `${it.cell} ${it.id}`}
        />
      ) : (
        <p class="faint">
          {model.may_sleep ? "It sleeps: its first call starts an engine." : "No engine runs: it has not been placed yet."}
        </p>
      )}
    </section>
  );
}

function Waits({ model }: { model: FleetModel }) {
  const queued = Object.entries(model.queued).filter(([, calls]) => calls > 0);
  if (!model.waiting_requests && !queued.length) return null;
  return (
    <Notice kind="warn">
      {model.waiting_requests > 0 && (
        <p>
          {plural(model.waiting_requests, "call")} without an engine that could take {model.waiting_requests === 1 ? "it" : "them"},
          the oldest for {duration(model.oldest_wait_s)}.
        </p>
      )}
      {queued.length > 0 && (
        <p>All engines are full: {queued.map(([name, calls]) => `${whole(calls)} ${name}`).join(", ")} in line.</p>
      )}
    </Notice>
  );
}

function Charts({ of: own, activity, minutes }: { of: ModelActivity; activity: Activity; minutes: number }) {
  const { slot_s: slotS } = activity;
  // The last slot has only begun.
  const cut = <Value,>(values: Value[]): Value[] => values.slice(-1 - (minutes * 60) / slotS, -1);
  const rate = (values: number[]): Series => cut(values).map((it) => it / slotS);
  const judged = cut(own.judged);
  const goodput = cut(own.kept).map((it, place) => (judged[place] ? it / slotS : null));
  const kept = sum(judged) ? `, ${percent(sum(cut(own.kept)) / sum(judged))} of calls` : "";
  const shared = { stepS: slotS, endsAt: activity.ends_at - slotS };
  return (
    <div class="charts">
      <Chart {...shared} title="Output tokens/s" values={rate(own.completion_tokens)} write={fine} />
      <Chart {...shared} title="TTFT, 95th percentile" values={cut(own.ttft_p95_s)} write={duration} />
      <Chart {...shared} title={`Goodput, calls/s${kept}`} values={goodput} write={fine} />
    </div>
  );
}

const REPLICA: Column<Replica>[] = [
  {
    title: "Engine",
    cell: (it) => (
      <>
        {it.node || it.id} {it.devices.length > 0 && <span class="faint">GPU {it.devices.join(", ")}</span>}
      </>
    ),
  },
  { title: "Cell", cell: (it) => it.cell },
  {
    title: "State",
    cell: (it) => (
      <>
        <State name={it.state} /> {it.progress && <span class="faint">{it.progress}</span>}
        {it.is_outlier && <span class="faint"> fails more than others, gets no calls for a while</span>}
      </>
    ),
  },
  { title: "Running", isNumber: true, cell: (it) => whole(it.running_requests) },
  { title: "Waiting", isNumber: true, cell: (it) => whole(it.waiting_requests) },
  { title: "KV cache", isNumber: true, cell: (it) => percent(it.kv_cache_used_ratio) },
  { title: "Last report", isNumber: true, cell: (it) => `${duration(it.reported_s_ago)} ago` },
];
