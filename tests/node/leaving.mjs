// WebSocket clients that note how they are told to go.
//
// node leaving.mjs PORT CLIENTS: says "open" once all are, and at the end one line of JSON: the codes
// of their Close frames, what went wrong, and when they were told, in tenths of a second since 1970.
import { WebSocket } from "ws";

const [port, clients] = process.argv.slice(2).map(Number);
const codes = {};
const errors = {};
const times = [];
let messages = 0;
const note = (table, key) => (table[key] = (table[key] ?? 0) + 1);

const ended = [];
const open = (index) =>
  new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://127.0.0.1:${port}/`, {
      localAddress: `127.0.${1 + (index % 200)}.1`,
      perMessageDeflate: true,
    });
    socket.once("open", resolve);
    socket.once("error", reject);
    socket.on("error", (error) => note(errors, error.message));
    socket.on("message", (data) => {
      messages++;
      if (data.length !== 64 * 1024) note(errors, `a message of ${data.length} bytes`);
    });
    ended.push(
      new Promise((done) =>
        socket.on("close", (code, reason) => {
          times.push(Date.now());
          note(codes, `${code} ${reason}`);
          done();
        }),
      ),
    );
  });

for (let index = 0; index < clients; index += 50) {
  await Promise.all(Array.from({ length: Math.min(50, clients - index) }, (_, n) => open(index + n)));
}
console.log("open");
await Promise.all(ended);
const tenths = {};
for (const time of times) note(tenths, Math.floor(time / 100));
console.log(JSON.stringify({ codes, errors, messages, tenths }));
