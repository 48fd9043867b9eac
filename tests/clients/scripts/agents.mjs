// What the command lines have in common: each is run to its end, or left in the middle of an answer.
import { spawn } from "node:child_process";
import * as h from "./harness.mjs";

/** What a command prints; throws what it complains of when it fails. */
export function printed(command, args) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  let complaint = "";
  child.stdout.on("data", (data) => (output += data));
  child.stderr.on("data", (data) => (complaint += data));
  return new Promise((resolve, reject) => {
    child.on("close", (code) => (code === 0 ? resolve(output) : reject(new Error((complaint + output).slice(-800)))));
  });
}

/** Start a command whose answer has no end, and press Ctrl-C when it was given `seconds`. */
export async function left(command, args, seconds) {
  const child = spawn(command, args, { stdio: "ignore" });
  await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  child.kill("SIGINT");
  await new Promise((resolve) => child.on("close", resolve));
  return true;
}

/** The question that makes the scripted engine call a shell. */
export const calling = (tool, key) => `Call ${tool} with ${JSON.stringify({ [key]: `echo ${h.WEATHER}` })}`;
