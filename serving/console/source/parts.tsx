/** Parts: what all views are made of. */

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import type { Failure } from "./api";
import { clock, day, percent, short } from "./format";

type Children = { children: ComponentChildren };

/** A view's heading, and what can be done there. It takes the focus when the view opens, so that screen readers say it. */
export function Heading({ title, children }: { title: string; children?: ComponentChildren }) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${title} · Console`;
    heading.current?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }, [title]);
  return (
    <header class="heading">
      <h1 ref={heading} tabIndex={-1}>
        {title}
      </h1>
      {children && <div class="actions">{children}</div>}
    </header>
  );
}

export function Notice({ kind, children }: { kind: "bad" | "warn" | "note" } & Children) {
  return (
    <div class={`notice ${kind}`} role={kind === "bad" ? "alert" : "status"}>
      {children}
    </div>
  );
}

/** What went wrong, in a sentence, with what its request is called in the gateway's log. */
export function Wrong({ failure, retry }: { failure: Failure | undefined; retry?: () => void }) {
  if (!failure) return null;
  return (
    <Notice kind="bad">
      <p>{failure.message}</p>
      {failure.requestId && (
        <p class="faint">
          Request <code>{failure.requestId}</code>
        </p>
      )}
      {retry && <Button onClick={retry}>Try again</Button>}
    </Notice>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="strong">{title}</p>
      {children && <p class="faint">{children}</p>}
    </div>
  );
}

export const Waiting = () => (
  <p class="faint waiting" role="status">
    Loading …
  </p>
);

type Look = { kind?: "main" | "danger" | "plain"; size?: "small" | "wide" | "fold" };

export function Button({ kind = "plain", size, ...rest }: Look & JSX.IntrinsicElements["button"]) {
  return <button type="button" {...rest} class={`button ${kind} ${size ?? ""}`} />;
}

/** The console's sign. */
export const Mark = () => (
  <svg viewBox="0 0 32 32" aria-hidden="true">
    <rect width="32" height="32" rx="7" fill="currentColor" />
    <path class="mark" d="M8 11l5 5-5 5M15 21h9" />
  </svg>
);

/** A labelled control. `children` gets the attributes that tie control, hint and fault together. */
export function Field({
  label,
  hint,
  fault,
  children,
}: {
  label: string;
  hint?: string;
  fault?: string | undefined;
  children: (ties: { id: string; "aria-describedby"?: string; "aria-invalid"?: boolean }) => ComponentChildren;
}) {
  const id = useId();
  const about = fault || hint ? `${id}-about` : undefined;
  const ties = { id, ...(about && { "aria-describedby": about }), ...(fault && { "aria-invalid": true }) };
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children(ties)}
      {about && (
        <p id={about} class={fault ? "fault" : "faint"}>
          {fault || hint}
        </p>
      )}
    </div>
  );
}

export function Choice({
  label,
  value,
  options,
  onChange,
  hint,
}: {
  label: string;
  value: string;
  options: readonly (readonly [value: string, title: string])[];
  onChange: (value: string) => void;
  hint?: string;
}) {
  return (
    <Field label={label} {...(hint && { hint })}>
      {(ties) => (
        <select {...ties} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
          {options.map(([name, title]) => (
            <option key={name} value={name} selected={name === value}>
              {title}
            </option>
          ))}
        </select>
      )}
    </Field>
  );
}

const TONES: Record<string, string> = {
  ready: "good",
  active: "good",
  completed: "good",
  failed: "bad",
  revoked: "bad",
  disabled: "bad",
  expired: "bad",
  cancelled: "idle",
  asleep: "idle",
};

/** A state in a word; its colour only repeats it. */
export function State({ name }: { name: string }) {
  return <span class={`state ${TONES[name] ?? "busy"}`}>{name.replace(/_/g, " ")}</span>;
}

export interface Column<Row> {
  title: string;
  cell: (row: Row) => ComponentChildren;
  isNumber?: boolean;
}

/** A table; on narrow screens each row is a card with the columns' titles in it. Its first column names the row. */
export function Table<Row>({
  caption,
  columns,
  rows,
  keyOf,
}: {
  caption: string;
  columns: Column<Row>[];
  rows: Row[];
  keyOf: (row: Row) => string;
}) {
  // Roles are said in full: browsers forget a table's when its display is changed.
  return (
    <table role="table">
      <caption class="unseen">{caption}</caption>
      <thead role="rowgroup">
        <tr role="row">
          {columns.map((it) => (
            <th key={it.title} role="columnheader" scope="col" class={it.isNumber ? "number" : ""}>
              {it.title}
            </th>
          ))}
        </tr>
      </thead>
      <tbody role="rowgroup">
        {rows.map((row) => (
          <tr key={keyOf(row)} role="row">
            {columns.map((it, place) =>
              place === 0 ? (
                <th key={it.title} role="rowheader" scope="row">
                  {it.cell(row)}
                </th>
              ) : (
                <td key={it.title} role="cell" class={it.isNumber ? "number" : ""} data-title={it.title}>
                  <div>{it.cell(row)}</div>
                </td>
              ),
            )}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** How much of a limit is used; of progress, more is no worse. */
export function Meter({
  label,
  used,
  limit,
  said,
  isProgress,
}: {
  label: string;
  used: number;
  limit: number;
  said?: string;
  isProgress?: boolean;
}) {
  const ratio = limit > 0 ? Math.min(1, used / limit) : 1;
  const tone = isProgress || ratio < 0.8 ? "fine" : ratio < 1 ? "warn" : "bad";
  const text = said ?? `${short(used)} of ${short(limit)}`;
  return (
    <div class="meter">
      <p>
        <span class="label">{label}</span>
        <span class="figures">{text}</span>
      </p>
      <svg
        class={`bar ${tone}`}
        viewBox="0 0 100 1"
        preserveAspectRatio="none"
        role={isProgress ? "progressbar" : "meter"}
        aria-label={label}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(ratio * 100)}
        aria-valuetext={`${text}, ${percent(ratio)}`}
      >
        <rect class="ground" width="100" height="1" />
        <rect class="level" width={ratio * 100} height="1" />
      </svg>
    </div>
  );
}

export function Copy({ text, label = "Copy" }: { text: string; label?: string }) {
  const [said, setSaid] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setSaid("Copied");
    } catch {
      setSaid("Select and copy it"); // browsers give pages without TLS no clipboard
    }
    setTimeout(() => setSaid(""), 2500);
  };
  return (
    <>
      <Button size="small" onClick={copy}>
        {said || label}
      </Button>
      <span class="unseen" role="status">
        {said}
      </span>
    </>
  );
}

/** A modal dialog of the browser's own: it holds the focus, and Escape closes it. */
export function Dialog({
  title,
  onClose,
  isBroad,
  children,
}: { title: string; onClose: () => void; isBroad?: boolean } & Children) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const opener = document.activeElement;
    dialog.current?.showModal();
    return () => {
      if (opener instanceof HTMLElement) opener.focus();
    };
  }, []);
  return (
    <dialog ref={dialog} class={isBroad ? "broad" : ""} aria-labelledby={id} onClose={onClose}>
      <header class="heading">
        <h2 id={id}>{title}</h2>
        <Button size="small" aria-label="Close" onClick={() => dialog.current?.close()}>
          ✕
        </Button>
      </header>
      {children}
    </dialog>
  );
}

export function Code({ text, label }: { text: string; label: string }) {
  return (
    <div class="code">
      <pre tabIndex={0} role="region" aria-label={label}>
        {text}
      </pre>
      <Copy text={text} />
    </div>
  );
}

/** A moment: its day and time for machines and on hover. */
export function When({ at, none = "–" }: { at: number | null | undefined; none?: string }) {
  if (at === null || at === undefined) return <span class="faint">{none}</span>;
  const iso = new Date(at * 1000).toISOString();
  return (
    <time dateTime={iso} title={iso}>
      {day(at)} <span class="faint">{clock(at).slice(0, 5)}</span>
    </time>
  );
}

/** A figure with what it counts. */
export function Figure({ title, value, about }: { title: string; value: ComponentChildren; about?: ComponentChildren }) {
  return (
    <div class="figure">
      <dt>{title}</dt>
      <dd>
        <span class="value">{value}</span>
        {about && <span class="faint"> {about}</span>}
      </dd>
    </div>
  );
}

/** "More" below a list in pages. */
export function More({ next, isBusy, more }: { next: string | null; isBusy: boolean; more: () => void }) {
  if (!next) return null;
  return (
    <p class="more">
      <Button onClick={more} disabled={isBusy}>
        {isBusy ? "Loading …" : "Show more"}
      </Button>
    </p>
  );
}
