// Writes down what came: one program for all events, a line of JSON for each, a line of JSON as its result.

import { appendFile } from "node:fs/promises";
import { createInterface } from "node:readline";

class Permanent extends Error {}

async function handle(event) {
  if (event.type === "github.ping") throw new Permanent(`nobody handles ${event.type}`);
  await appendFile(process.env.HANDLED ?? "handled.txt", `${event.id} ${event.partitionkey ?? "-"}\n`);
}

// Several events are in hand at a time; those of one key come one after another, so order is kept.
async function answer(line) {
  const ask = JSON.parse(line);
  let result = { id: ask.id, result: "done" };
  try {
    await handle(ask.event);
  } catch (error) {
    result = { id: ask.id, result: error instanceof Permanent ? "permanent" : "transient", error: String(error.message) };
  }
  console.log(JSON.stringify(result));
}

createInterface({ input: process.stdin }).on("line", answer);
