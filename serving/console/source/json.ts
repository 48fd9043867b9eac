/** JSON: where a text stops being JSON. What browsers say of it differs, and often has no place. */

const TOKEN =
  /[ \t\n\r]*(?:([{}[\]:,])|("(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[\da-fA-F]{4}))*")|(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null))/y;

/** What may come next: a value; a value or the end of a list; a name or the end of an object; a name; `:`; `,` or the end. */
type Wanted = "value" | "first" | "firstName" | "name" | "colon" | "more" | "nothing";

/** The offset of what cannot stand there; the text's length where it ends too early. Of text that is JSON, null. */
export function faultAt(text: string): number | null {
  const open: string[] = [];
  let wanted: Wanted = "value";
  let at = 0;
  for (;;) {
    const begin = at + /^[ \t\n\r]*/.exec(text.slice(at))![0].length;
    if (begin === text.length) return wanted === "nothing" ? null : begin;
    TOKEN.lastIndex = at;
    const token = TOKEN.exec(text);
    const next: Wanted | null | undefined = token && after(wanted, token[1] ?? (token[2] ? "string" : "word"), open);
    if (!next) return begin;
    wanted = next;
    at = TOKEN.lastIndex;
  }
}

/** What may come behind a token, or undefined where it may not stand; `open` are the lists and objects around it. */
function after(wanted: Wanted, token: string, open: string[]): Wanted | undefined {
  const isValue = wanted === "value" || wanted === "first";
  const inner = open.at(-1);
  if (isValue && (token === "[" || token === "{")) {
    open.push(token);
    return token === "[" ? "first" : "firstName";
  }
  if (isValue && (token === "string" || token === "word")) return inner ? "more" : "nothing";
  if ((wanted === "name" || wanted === "firstName") && token === "string") return "colon";
  if (wanted === "colon" && token === ":") return "value";
  if (wanted === "more" && token === ",") return inner === "{" ? "name" : "value";
  const closes = (token === "]" && inner === "[") || (token === "}" && inner === "{");
  if (!closes || !["more", "first", "firstName"].includes(wanted)) return undefined;
  open.pop();
  return open.length ? "more" : "nothing";
}
