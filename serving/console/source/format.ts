/** Format: numbers, times and words as people read them. */

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const DAY = new Intl.DateTimeFormat("en-CA", { year: "numeric", month: "2-digit", day: "2-digit" });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const whole = (value: number): string => WHOLE.format(value);

/** 1234567 → 1.23M; below ten thousand every digit. */
export const short = (value: number): string => (Math.abs(value) < 10_000 ? WHOLE.format(value) : SHORT.format(value));

/** A rate or another number that is not whole. */
export function fine(value: number): string {
  if (value === 0) return "0";
  if (value >= 100) return short(value);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export const percent = (ratio: number): string => `${Math.round(ratio * 100)} %`;

/** 0.0423 → 42 ms; 90 → 1 min 30 s. */
export function duration(seconds: number): string {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return joined(Math.floor(seconds / 60), "min", Math.round(seconds % 60), "s");
  if (seconds < 86_400) return joined(Math.floor(seconds / 3600), "h", Math.round((seconds % 3600) / 60), "min");
  return `${Math.round(seconds / 86_400)} d`;
}

export const day = (at: number): string => DAY.format(at * 1000);
export const clock = (at: number): string => CLOCK.format(at * 1000);

/** Money of the ledger, which counts in millionths. */
export function money(micros: number, currency: string): string {
  const value = micros / 1e6;
  const digits = value !== 0 && value < 0.1 ? 4 : 2;
  try {
    const style = { style: "currency", currency, minimumFractionDigits: digits, maximumFractionDigits: digits } as const;
    return new Intl.NumberFormat("en", style).format(value);
  } catch {
    return `${value.toFixed(digits)} ${currency}`; // a currency of the company's own
  }
}

/** `tokens_per_day` → tokens per day. */
export const words = (name: string): string => name.replace(/[_.]/g, " ");
export const sentence = (name: string): string => name.charAt(0).toUpperCase() + words(name).slice(1);

export const plural = (count: number, one: string, many = `${one}s`): string =>
  `${whole(count)} ${count === 1 ? one : many}`;

function joined(large: number, largeUnit: string, small: number, smallUnit: string): string {
  return small ? `${large} ${largeUnit} ${small} ${smallUnit}` : `${large} ${largeUnit}`;
}
