/** Batches: what was handed in for spare capacity, how far it is, and taking it back. */

import { useState } from "preact/hooks";
import { ask, asFailure, type Failure } from "./api";
import { whole } from "./format";
import { useRead } from "./live";
import { Button, Dialog, Empty, Heading, Meter, State, Table, Waiting, When, Wrong, type Column } from "./parts";
import { go, type Route } from "./route";
import type { Batch, BatchList, SignedIn } from "./shapes";

const PAGE = 50;
/** Of one batch. */
const FAULTS_MAX = 3;
const REFRESH_MS = 5000;
const CANCELLABLE = ["validating", "in_progress"];

export function Batches({ route }: { route: Route; session: SignedIn }) {
  const { after = "" } = route.parameters;
  const list = useRead<BatchList>(`/v1/batches?limit=${PAGE}${after && `&after=${encodeURIComponent(after)}`}`, REFRESH_MS);
  const [cancelled, setCancelled] = useState<Batch>();
  const batches = list.value?.data ?? [];
  const columns: Column<Batch>[] = [
    { title: "Batch", cell: (it) => <code>{it.id}</code> },
    { title: "State", cell: (it) => <State name={it.status} /> },
    { title: "Lines", cell: (it) => <Lines of={it} /> },
    { title: "For", cell: (it) => <code>{it.endpoint}</code> },
    { title: "Handed in", cell: (it) => <When at={it.created_at} /> },
    { title: "Ended", cell: (it) => <When at={endOf(it)} none="not yet" /> },
    {
      title: "Actions",
      cell: (it) =>
        CANCELLABLE.includes(it.status) && (
          <Button size="small" kind="danger" onClick={() => setCancelled(it)}>
            Cancel<span class="unseen"> {it.id}</span>
          </Button>
        ),
    },
  ];
  return (
    <>
      <Heading title="Batches" />
      <Wrong failure={list.failure} retry={list.reload} />
      {!list.value && !list.failure && <Waiting />}
      {list.value && !batches.length && (
        <Empty title="No batches">
          A batch runs a file of requests when engines have room: <code>serving batch run FILE</code> hands one in.
        </Empty>
      )}
      {batches.length > 0 && <Table caption="Batches" columns={columns} rows={batches} keyOf={(it) => it.id} />}
      {list.value?.has_more && (
        <p class="more">
          <Button onClick={() => go("batches", { after: batches.at(-1)!.id })}>Older ones</Button>
        </p>
      )}
      {cancelled && (
        <Cancel
          of={cancelled}
          onClose={() => setCancelled(undefined)}
          onDone={() => {
            setCancelled(undefined);
            list.reload();
          }}
        />
      )}
    </>
  );
}

const endOf = (it: Batch) => it.completed_at ?? it.failed_at ?? it.expired_at ?? it.cancelled_at;

function Lines({ of: batch }: { of: Batch }) {
  const counts = batch.request_counts;
  const faults = (batch.errors?.data ?? []).slice(0, FAULTS_MAX);
  if (faults.length) {
    return faults.map((it) => (
      <p key={`${it.line} ${it.message}`} class="fault">
        {it.line ? `Line ${it.line}: ` : ""}
        {it.message}
      </p>
    ));
  }
  if (!counts?.total) return <span class="faint">–</span>;
  const failed = counts.failed ? `, ${whole(counts.failed)} failed` : "";
  const said = `${whole(counts.completed)} of ${whole(counts.total)}${failed}`;
  return <Meter label="Done" used={counts.completed + counts.failed} limit={counts.total} said={said} isProgress />;
}

function Cancel({ of: batch, onClose, onDone }: { of: Batch; onClose: () => void; onDone: () => void }) {
  const [failure, setFailure] = useState<Failure>();
  const cancel = async () => {
    try {
      await ask(`/v1/batches/${encodeURIComponent(batch.id)}/cancel`, { method: "POST" });
      onDone();
    } catch (error) {
      setFailure(asFailure(error));
    }
  };
  return (
    <Dialog title="Cancel the batch?" onClose={onClose}>
      <p>
        Lines of <code>{batch.id}</code> that have not begun are not run; those that are done stay, and are paid for.
      </p>
      <Wrong failure={failure} />
      <div class="actions end">
        <Button onClick={onClose}>Keep it</Button>
        <Button kind="danger" onClick={() => void cancel()}>
          Cancel it
        </Button>
      </div>
    </Dialog>
  );
}
