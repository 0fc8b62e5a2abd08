// socket.io clients that stay a day: node pollers.mjs PORT CLIENTS UPGRADED. Each has an address of its
// own, 127.1.9.1 and on; the first UPGRADED go on to a WebSocket, the others poll, each time by a new
// connection. One line of JSON for all that happens to one; on stdin "pause", "go" and "end".
import { Agent } from "node:http";
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [port, clients, upgraded] = process.argv.slice(2).map(Number);
const now = () => (performance.timeOrigin + performance.now()) / 1000;
const say = (what) => console.log(JSON.stringify(what));
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const crowd = [];

for (let n = 1; n <= clients; n++) {
  const address = `127.1.9.${n}`;
  const socket = io(`http://127.0.0.1:${port}`, {
    agent: new Agent({ localAddress: address, keepAlive: false }),
    forceNew: true,
    transports: n <= upgraded ? ["polling", "websocket"] : ["polling"],
    reconnectionDelay: 20,
    reconnectionDelayMax: 100,
    timeout: 20_000,
  });
  crowd.push(socket);
  let tried = now();
  socket.io.on("reconnect_attempt", () => (tried = now()));
  socket.on("connect", () => say({ address, what: "connect", begun: tried, at: now() }));
  socket.on("disconnect", (reason, details) => {
    tried = now();
    const text = details?.context?.responseText ?? details?.description?.message ?? details?.message;
    say({ address, what: "disconnect", at: now(), reason, text: String(text ?? "") });
  });
  const failed = (error) => {
    // "disconnect" tells it.
    if (socket.connected) return;
    const text = error.context?.responseText || error.description?.message || error.message;
    say({ address, what: "refused", begun: tried, at: now(), text: String(text) });
    tried = now();
  };
  socket.io.on("error", failed);
  asks(address, socket);
}

async function asks(address, socket) {
  for (;;) {
    await sleep(100 + Math.random() * 100);
    if (!socket.connected) continue;
    const begun = now();
    let lost;
    const gone = new Promise((_, reject) => socket.once("disconnect", (lost = () => reject())));
    try {
      const { slot, generation, pid } = await Promise.race([gone, socket.timeout(20_000).emitWithAck("who")]);
      say({ address, what: "who", begun, at: now(), slot, generation, pid });
    } catch (error) {
      if (error !== undefined) say({ address, what: "silent", begun, at: now(), text: error.message });
    }
    socket.off("disconnect", lost);
    gone.catch(() => {});
  }
}

// A session that is ended says so by requests of its own, one after the other, each by a new connection.
const areGone = () =>
  crowd.every(({ io: { engine, opts: { agent } } }) => {
    const isIdle = [agent.sockets, agent.requests].every((of) => Object.keys(of).length === 0);
    return engine.readyState === "closed" && isIdle;
  });

for await (const line of createInterface({ input: process.stdin })) {
  if (line === "end") process.exit();
  for (const socket of crowd) line === "pause" ? socket.disconnect() : socket.connect();
  if (line !== "pause") continue;
  while (!areGone()) await sleep(5);
  say({ what: "paused" });
}
