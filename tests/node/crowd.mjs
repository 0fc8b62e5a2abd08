// socket.io clients: node crowd.mjs PORT CLIENTS ADDRESSES. Each begins by polling and goes over to
// a WebSocket; CLIENTS share ADDRESSES. One JSON line for every command on stdin:
// "count" asks every client who serves it, "end" ends.
import { Agent } from "node:http";
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [port, clients, addresses] = process.argv.slice(2).map(Number);
const stats = { connects: 0, upgrades: 0, unknown: 0, failures: {} };
const crowd = Array.from({ length: clients }, (_, n) => {
  const address = `127.2.0.${(n % addresses) + 1}`;
  const agent = new Agent({ localAddress: address, keepAlive: true });
  const socket = io(`http://127.0.0.1:${port}`, {
    agent,
    forceNew: true,
    transports: ["polling", "websocket"],
    reconnectionDelay: 50,
    reconnectionDelayMax: 200,
    timeout: 20_000,
  });
  const client = { address, socket, connects: 0 };
  socket.on("connect", () => {
    stats.connects++;
    client.connects++;
    socket.io.engine.once("upgrade", () => stats.upgrades++);
  });
  // A home is stable for the polling requests of one session, or the server knows it not.
  const failed = (error) => {
    const text = String(error.context?.responseText ?? error.description ?? error.message);
    if (text.includes("Session ID unknown")) stats.unknown++;
    else stats.failures[text] = (stats.failures[text] ?? 0) + 1;
  };
  socket.io.on("error", failed);
  socket.io.on("open", () => socket.io.engine.on("error", failed));
  return client;
});

const asked = async (client) => {
  const { address, socket } = client;
  for (;;) {
    try {
      const who = await socket.timeout(20_000).emitWithAck("who");
      const transport = socket.io.engine.transport.name;
      const { connects } = client;
      return { address, connects, transport, slot: who.slot, generation: who.generation };
    } catch {}
  }
};
for await (const line of createInterface({ input: process.stdin })) {
  if (line === "end") process.exit();
  const all = await Promise.all(crowd.map(asked));
  console.log(JSON.stringify({ ...stats, all }));
}
