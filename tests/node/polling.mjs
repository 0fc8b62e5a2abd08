// socket.io clients that only poll: node polling.mjs PORT CLIENTS. Each has an address of its own. "count"
// on stdin asks every client who serves it, and prints one line of JSON.
import { Agent } from "node:http";
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [port, clients] = process.argv.slice(2).map(Number);
const stats = { connects: 0, unknown: 0, failures: {} };

const crowd = Array.from({ length: clients }, (_, n) => {
  const socket = io(`http://127.0.0.1:${port}`, {
    agent: new Agent({ localAddress: `127.3.0.${n + 1}`, keepAlive: n % 2 === 0 }),
    withCredentials: false,
    forceNew: true,
    transports: ["polling"],
    reconnectionDelay: 50,
    reconnectionDelayMax: 200,
  });
  socket.on("connect", () => stats.connects++);
  const failed = (error) => {
    const text = String(error.context?.responseText ?? error.description ?? error.message);
    if (text.includes("Session ID unknown")) stats.unknown++;
    else stats.failures[text] = (stats.failures[text] ?? 0) + 1;
  };
  socket.io.on("error", failed);
  socket.io.on("open", () => socket.io.engine.on("error", failed));
  return socket;
});

const asked = async (socket) => {
  for (;;) {
    try {
      return (await socket.timeout(5_000).emitWithAck("who")).generation;
    } catch {}
  }
};
for await (const _ of createInterface({ input: process.stdin })) {
  const generations = {};
  for (const generation of await Promise.all(crowd.map(asked))) {
    generations[generation] = (generations[generation] ?? 0) + 1;
  }
  console.log(JSON.stringify({ ...stats, generations }));
}
