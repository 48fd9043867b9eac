// What the Node scripts share: a feature is a function, and each prints one JSON line, in the order of the object.
// The settings are the environment's, as a newcomer sets them: base URL and key. A script asks what tiny-gpt-oss knows.

import { createInterface } from "node:readline";

export const ROOT_URL = process.env.CLIENT_URL;
export const BASE_URL = `${ROOT_URL}/v1`;
export const API_KEY = process.env.CLIENT_KEY;
export const MODEL = process.env.CLIENT_MODEL;

export const QUESTION = "What is 17 + 25?";
export const WEATHER_QUESTION = "Weather in Paris?";
export const TOWER_QUESTION = "Where is the Eiffel Tower?";
export const ENDLESS_QUESTION = "Count without end.";
export const TOO_LONG = "word ".repeat(20_000);

export const WEATHER_DESCRIPTION = "Weather of a city.";
export const WEATHER_PARAMETERS = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
export const WEATHER = "18 degrees, sunny";

/** The name of the error that a call throws. */
export async function thrown(call) {
  try {
    await call();
  } catch (error) {
    return error.constructor.name;
  }
  return "nothing";
}

/** Every piece of a stream. */
export async function collected(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return pieces;
}

/** Every feature in turn; the reader of our lines answers each with one when we may go on. */
export async function perform(features) {
  const replies = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  for (const [feature, action] of Object.entries(features)) {
    let line;
    try {
      line = { value: await action() };
    } catch (error) {
      line = { error: `${error.constructor.name}: ${error.message}` };
    }
    console.log(JSON.stringify({ feature, ...line }));
    await replies.next();
  }
  process.exit();
}
