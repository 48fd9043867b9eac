/** Charts: one series over time, small enough to stand in rows. */

import { useState } from "preact/hooks";
import { clock } from "./format";

const WIDTH = 240;
const HEIGHT = 48;

export type Series = (number | null)[];

/** `values` are oldest first, one every `stepS`, the last at `endsAt`; null is a gap. */
export function Chart({
  title,
  values,
  stepS,
  endsAt,
  write,
  bound,
}: {
  title: string;
  values: Series;
  stepS: number;
  endsAt: number;
  write: (value: number) => string;
  /** The top of the scale, where it has one. */
  bound?: number;
}) {
  const [place, setPlace] = useState<number | null>(null);
  const known = values.filter((it): it is number => it !== null);
  const top = bound ?? Math.max(...known, 0);
  const shown = place === null ? lastKnown(values) : place;
  const value = shown === null ? null : (values[shown] ?? null);
  const at = shown === null ? null : endsAt - (values.length - 1 - shown) * stepS;
  const follow = (event: PointerEvent & { currentTarget: SVGSVGElement }) => {
    const box = event.currentTarget.getBoundingClientRect();
    const ratio = (event.clientX - box.left) / box.width;
    setPlace(Math.max(0, Math.min(values.length - 1, Math.round(ratio * (values.length - 1)))));
  };
  return (
    <figure class="chart">
      <figcaption>
        <span>{title}</span>
        <span class="value">{value === null ? "–" : write(value)}</span>
        <span class="faint at">{place !== null && at !== null ? clock(at) : ""}</span>
      </figcaption>
      <svg
        viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
        preserveAspectRatio="none"
        role="img"
        aria-label={summary(title, known, values.length * stepS, write)}
        onPointerMove={follow}
        onPointerLeave={() => setPlace(null)}
      >
        <line class="grid" x1="0" x2={WIDTH} y1="0.5" y2="0.5" />
        <line class="grid" x1="0" x2={WIDTH} y1={HEIGHT - 0.5} y2={HEIGHT - 0.5} />
        {top > 0 && <path class="area" d={path(values, top, true)} />}
        {top > 0 && <path class="line" d={path(values, top, false)} />}
        {place !== null && <line class="cursor" x1={x(place, values)} x2={x(place, values)} y1="0" y2={HEIGHT} />}
      </svg>
      <div class="scale faint" aria-hidden="true">
        <span>{Math.round((values.length * stepS) / 60)} min ago</span>
        <span>{known.length ? `0 – ${write(top)}` : "nothing yet"}</span>
        <span>now</span>
      </div>
    </figure>
  );
}

const x = (place: number, values: Series): number => (place / Math.max(1, values.length - 1)) * WIDTH;

/** Each stretch between gaps is a piece of its own. */
function path(values: Series, top: number, isClosed: boolean): string {
  const y = (value: number) => 1 + (HEIGHT - 2) * (1 - Math.min(1, value / top));
  const pieces: string[] = [];
  let begun: number | null = null;
  values.forEach((value, place) => {
    if (value === null) {
      begun = null;
      return;
    }
    const here = `${x(place, values).toFixed(1)} ${y(value).toFixed(1)}`;
    if (begun !== null) {
      pieces.push(`L${here}`);
    } else {
      begun = place;
      pieces.push(isClosed ? `M${x(place, values).toFixed(1)} ${HEIGHT}L${here}` : `M${here}`);
    }
    const isEnd = values[place + 1] === null || place === values.length - 1;
    if (isEnd && isClosed) pieces.push(`L${x(place, values).toFixed(1)} ${HEIGHT}Z`);
    if (isEnd && !isClosed && begun === place) pieces.push("h0.1"); // one value alone: a dot
  });
  return pieces.join("");
}

function lastKnown(values: Series): number | null {
  for (let place = values.length - 1; place >= 0; place -= 1) if (values[place] !== null) return place;
  return null;
}

function summary(title: string, known: number[], seconds: number, write: (value: number) => string): string {
  const period = `the last ${Math.round(seconds / 60)} minutes`;
  const last = known.at(-1);
  if (last === undefined) return `${title}: nothing in ${period}`;
  return `${title} in ${period}: now ${write(last)}, lowest ${write(Math.min(...known))}, highest ${write(Math.max(...known))}`;
}
