// socket.io clients whose source address changes with every connection.
//
// node roaming.mjs PORT CLIENTS [no-cookies]: half of them stay with polling, half go on to WebSocket.
// Each asks several times who serves it. Prints one line of JSON.
import { Agent } from "node:http";
import { io } from "socket.io-client";

const [port, clients] = process.argv.slice(2, 4).map(Number);
const withCredentials = process.argv[4] !== "no-cookies";
const ASKS = 4;

class Roaming extends Agent {
  createConnection(options, callback) {
    const byte = () => 1 + Math.floor(Math.random() * 250);
    const localAddress = `127.${byte()}.${byte()}.${byte()}`;
    return super.createConnection({ ...options, localAddress }, callback);
  }
}

const ask = (socket) =>
  new Promise((resolve, reject) => {
    socket.once("disconnect", (reason) => reject(new Error(`disconnected: ${reason}`)));
    socket.timeout(20_000).emit("who", (error, who) => (error ? reject(error) : resolve(who)));
  });

async function client(index) {
  const socket = io(`http://127.0.0.1:${port}`, {
    agent: new Roaming({ keepAlive: false }),
    withCredentials,
    reconnection: false,
    forceNew: true,
    transports: index % 2 ? ["polling"] : ["polling", "websocket"],
  });
  await new Promise((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("connect_error", reject);
  });
  const pids = new Set();
  for (let asked = 0; asked < ASKS; asked++) {
    pids.add((await ask(socket)).pid);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  const transport = socket.io.engine.transport.name;
  socket.removeAllListeners("disconnect");
  socket.disconnect();
  if (pids.size !== 1) throw new Error(`served by ${[...pids]}`);
  return { pid: [...pids][0], transport };
}

const outcomes = await Promise.allSettled(Array.from({ length: clients }, (_, index) => client(index)));
const count = (values) => values.reduce((all, value) => ({ ...all, [value]: (all[value] ?? 0) + 1 }), {});
const served = outcomes.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
const failed = outcomes.filter(({ status }) => status === "rejected");
console.log(
  JSON.stringify({
    served: served.length,
    pids: count(served.map(({ pid }) => pid)),
    transports: count(served.map(({ transport }) => transport)),
    failures: count(failed.map(({ reason }) => `${reason.message} ${reason.context?.responseText ?? ""}`)),
  }),
);
