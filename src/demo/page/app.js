// The demo's page: who serves me, the chat, and what CPU-bound work does to an event loop.
// Whatever people typed gets onto the page as textContent, never as HTML.
'use strict';

const $ = (id) => document.getElementById(id);
const now = () => performance.now();

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const clock = (at, seconds) => new Date(at).toLocaleTimeString([], {
  hour: '2-digit', minute: '2-digit', second: seconds ? '2-digit' : undefined, hour12: false,
});

const duration = (ms) => (ms < 995 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

const newId = () => {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
};

// ---- The connection: one WebSocket, made anew with a jittered back-off ----

const FIRST_PAUSE_MS = 80;
const LONGEST_PAUSE_MS = 3000;
const HELLO_WITHIN_MS = 8000;

let socket = null;
let attempts = 0;
let lostAt = null;
let home = null;

function send(message) {
  if (!socket || socket.readyState !== WebSocket.OPEN || !home?.here) return false;
  socket.send(JSON.stringify(message));
  return true;
}

function connect() {
  const url = new URL('/ws', location.href);
  url.protocol = url.protocol.replace('http', 'ws');
  const mine = new WebSocket(url);
  socket = mine;
  const tooLate = setTimeout(() => mine.close(), HELLO_WITHIN_MS);
  mine.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === 'hello') {
      clearTimeout(tooLate);
      attempts = 0;
    }
    handlers[message.type]?.(message);
  };
  mine.onclose = () => {
    clearTimeout(tooLate);
    if (socket === mine) lost();
  };
}

function lost() {
  if (home?.here) {
    home.here = false;
    lostAt ??= now();
    endRun();
  }
  document.body.dataset.state = 'away';
  setPill('link', false, home ? 'your worker is gone; coming back…' : 'nobody answers; trying again…');
  enable(false);
  renderPending();
  const whole = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** attempts);
  attempts += 1;
  setTimeout(connect, whole * (0.5 + Math.random() / 2));
}

const handlers = {
  hello: arrived,
  bus: busChanged,
  history: ({ room, lines }) => { if (room === chat.room) mergeHistory(lines); },
  line: ({ room, line }) => { if (room === chat.room) takeLine(line); },
  presence: ({ room, people, here }) => {
    if (room !== chat.room) return;
    $('presence').textContent = `${people} ${people === 1 ? 'person' : 'people'} · ${here} on this worker`;
  },
  delay: ({ ms }) => takeDelay(ms),
  hash: takeHash,
  error: takeError,
};

// ---- Who serves me ----

// What this page came by, and how the front carries it.
function showFront(mode) {
  const [page] = performance.getEntriesByType('navigation');
  const names = { h2: 'HTTP/2', 'http/1.1': 'HTTP/1.1' };
  const protocol = names[page?.nextHopProtocol] ?? page?.nextHopProtocol ?? 'HTTP';
  const tls = location.protocol === 'https:' ? ', TLS' : '';
  $('front').hidden = false;
  setPill('front', true, `mode ${mode} · ${protocol}${tls}`);
}

function arrived({ slot, generation, pid, threads, queue, mode }) {
  showFront(mode);
  const before = home;
  home = { slot, generation, pid, here: true };
  $('slot').textContent = slot;
  $('generation').textContent = generation;
  $('pid').textContent = pid;
  $('pool-hint').textContent =
    `${threads} ${threads === 1 ? 'thread does' : 'threads do'} the work, ${queue} may wait, the rest is told 429.`;
  document.title = `${slot} · homescar demo`;
  document.body.dataset.state = 'home';
  document.body.classList.remove('flash');
  void document.body.offsetWidth;
  document.body.classList.add('flash');
  setPill('link', true, 'connected');
  enable(true);
  noteJourney(before);
  lostAt = null;
  chat.sentAt.clear();
  join();
}

function noteJourney(before) {
  const item = element('li');
  item.append(element('time', '', clock(Date.now(), true)));
  const what = element('span');
  const took = lostAt === null ? '' : ` after ${duration(now() - lostAt)}`;
  if (!before) {
    what.append(element('b', '', home.slot), ` generation ${home.generation}`);
    item.append(what, element('small', '', `first visit, process ${home.pid}`));
  } else if (before.slot === home.slot) {
    const same = before.pid === home.pid;
    what.append(element('b', '', home.slot));
    what.append(same
      ? ` generation ${home.generation}, the same process${took} `
      : ` generation ${before.generation} → generation ${home.generation}${took} `);
    what.append(element('span', 'tag', 'home again ✓'));
    item.append(what);
    if (!same) item.append(element('small', '', `process ${before.pid} → ${home.pid}`));
  } else {
    item.className = 'moved';
    what.append(element('b', '', `${before.slot} → ${home.slot}`), ` generation ${home.generation}${took} `);
    what.append(element('span', 'tag', 'moved'));
    item.append(what, element('small', '', `process ${before.pid} → ${home.pid}`));
  }
  $('journey').prepend(item);
  while ($('journey').childElementCount > 20) $('journey').lastChild.remove();
}

function setPill(id, up, text) {
  $(id).classList.toggle('up', up);
  $(`${id}-text`).textContent = text;
}

function busChanged({ name, up, why }) {
  chat.busUp = up;
  $('bus').hidden = false;
  $('bus').title = why;
  setPill('bus', up, up ? `${name} joins the workers` : `${name} is away; chat waits`);
  if (up) flushPending();
  renderPending();
}

function enable(on) {
  for (const id of ['kill', 'hash-pool', 'hash-loop']) $(id).disabled = !on || (id !== 'kill' && run !== null);
}

$('kill').onclick = () => {
  $('kill').disabled = true;
  lostAt = now();
  // Names the process, as browsers repeat a request whose connection breaks without an answer.
  fetch(`/kill?pid=${home.pid}`, { method: 'POST' }).then(() => {
    // An answer means that it lives.
    if (!home.here) return;
    lostAt = null;
    enable(true);
  }, () => {});
};

// ---- Chat ----

const ROOMS = ['lobby', 'reef', 'tide pool'];
const RESEND_AFTER_MS = 3000;

const chat = {
  room: decodeURIComponent(location.hash.slice(1)).trim().slice(0, 24) || ROOMS[0],
  name: remembered() || invented(),
  lines: new Map(),    // id → line, as the bus has it
  pending: new Map(),  // id → what I said and have not seen come back
  sentAt: new Map(),   // id → when it was last sent
  busUp: false,
};

function remembered() {
  try { return localStorage.getItem('name'); } catch { return null; }
}

function invented() {
  const one = (words) => words[Math.floor(Math.random() * words.length)];
  return `${one(['Quiet', 'Salty', 'Amber', 'Swift', 'Mellow', 'Bold', 'Misty', 'Sunny'])} ${
    one(['Limpet', 'Whelk', 'Mussel', 'Urchin', 'Cockle', 'Periwinkle', 'Anemone', 'Starfish'])}`;
}

function join() {
  send({ type: 'join', room: chat.room, name: chat.name });
}

function enter(room) {
  if (!room || room === chat.room) return;
  chat.room = room;
  chat.lines.clear();
  history.replaceState(null, '', `#${encodeURIComponent(room)}`);
  $('presence').textContent = '';
  renderRooms();
  renderLines();
  join();
}

function renderRooms() {
  const known = ROOMS.includes(chat.room) ? ROOMS : [...ROOMS, chat.room];
  const buttons = known.map((room) => {
    const button = element('button', '', room);
    button.type = 'button';
    button.setAttribute('aria-pressed', String(room === chat.room));
    button.onclick = () => enter(room);
    return button;
  });
  const other = element('input');
  other.placeholder = '+ room';
  other.maxLength = 24;
  other.setAttribute('aria-label', 'Another room');
  other.onchange = () => enter(other.value.trim());
  $('rooms').replaceChildren(...buttons, other);
}

$('name').value = chat.name;
$('name').onchange = () => {
  const name = $('name').value.trim();
  if (!name) { $('name').value = chat.name; return; }
  chat.name = name;
  try { localStorage.setItem('name', name); } catch { /* private window */ }
  join();
};

// What is typed is kept until it comes back over the bus; until then it shows as not yet said.
$('say').onsubmit = (event) => {
  event.preventDefault();
  const text = $('text').value.trim();
  if (!text) return;
  $('text').value = '';
  const id = newId();
  chat.pending.set(id, { id, room: chat.room, name: chat.name, text, at: Date.now(), slot: '' });
  flushPending();
  renderLines(true);
};

function flushPending() {
  for (const { id, room, text, failed } of chat.pending.values()) {
    const sent = chat.sentAt.get(id);
    if (failed || room !== chat.room || (sent !== undefined && now() - sent < RESEND_AFTER_MS)) continue;
    if (chat.busUp && send({ type: 'say', id, text })) chat.sentAt.set(id, now());
  }
}
setInterval(flushPending, 1000);

function takeLine(line) {
  if (chat.lines.has(line.id)) return;
  chat.lines.set(line.id, line);
  chat.sentAt.delete(line.id);
  renderLines(chat.pending.delete(line.id));
}

function mergeHistory(lines) {
  for (const line of lines) {
    chat.lines.set(line.id, line);
    chat.pending.delete(line.id);
  }
  renderLines();
  flushPending();
}

function takeError({ code, message, id }) {
  const line = chat.pending.get(id);
  if (!line) return;
  // Worth another try later, or never.
  if (!['no-bus', 'too-fast', 'no-room'].includes(code)) line.failed = message;
  renderLines();
}

function renderPending() {
  if (chat.pending.size > 0) renderLines();
}

function renderLines(toEnd = false) {
  const list = $('lines');
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const said = [...chat.lines.values()].sort((a, b) => a.at - b.at).slice(-200);
  if (chat.lines.size > 400) chat.lines = new Map(said.map((line) => [line.id, line]));
  const mine = [...chat.pending.values()].filter((line) => line.room === chat.room);
  const items = [...said, ...mine].map(lineItem);
  if (items.length === 0) {
    items.push(element('li', 'empty', 'Nobody has said anything here yet. History lives with the bus: it outlives every worker.'));
  }
  list.replaceChildren(...items);
  if (atEnd || toEnd) list.scrollTop = list.scrollHeight;
}

function lineItem(line) {
  const pending = chat.pending.has(line.id);
  const item = element('li', line.name === chat.name ? 'mine' : '');
  item.classList.toggle('pending', pending && !line.failed);
  item.classList.toggle('failed', Boolean(line.failed));
  const head = element('div', 'head');
  head.append(element('b', '', line.name));
  if (line.slot) head.append(element('span', 'via', `via ${line.slot}`));
  const waiting = home?.here && chat.busUp ? 'sending…' : 'kept until we are back';
  head.append(element('span', '', line.failed ? `not sent: ${line.failed}` : pending ? waiting : clock(line.at)));
  item.append(head, element('div', 'body', line.text));
  return item;
}

// ---- CPU-bound work ----

const RUN_SHOWN_MS = 6000;
let run = null;
const records = { pool: null, loop: null };

for (const on of ['pool', 'loop']) $(`hash-${on}`).onclick = () => startRun(on);

function startRun(on) {
  const count = Number(document.querySelector('[name=burst]:checked').value);
  run = { on, started: now(), asked: new Map(), latencies: [], full: 0, worst: 0, samplesLeft: Infinity };
  records[on] = { started: run.started, samples: [] };
  for (let id = 0; id < count; id += 1) {
    run.asked.set(id, now());
    send({ type: 'hash', id, password: `pebble ${id}`, on });
  }
  enable(true);
  showRun();
}

// Over the WebSocket and not with fetch: a browser opens six connections to a host at the most,
// with which a queue of sixteen never runs over. `curl -d '{"password":"x"}' …/hash` does the same.
function takeHash({ id, status }) {
  if (!run?.asked.has(id)) return;
  const took = now() - run.asked.get(id);
  run.asked.delete(id);
  if (status === 200) run.latencies.push(took);
  else if (status === 429) run.full += 1;
  showRun();
  // The delay that the last hash made arrives after its result, behind one older sample or two.
  if (run.asked.size === 0) run.samplesLeft = 3;
}

function endRun() {
  if (!run) return;
  records[run.on].ended = now();
  run = null;
  enable(Boolean(home?.here));
}

function showRun() {
  const { on, latencies, full, worst } = run;
  const sorted = latencies.toSorted((a, b) => a - b);
  const p95 = sorted[Math.ceil(sorted.length * 0.95) - 1];
  $(`${on}-done`).textContent = latencies.length;
  $(`${on}-p95`).textContent = p95 === undefined ? '–' : duration(p95);
  $(`${on}-full`).textContent = full;
  $(`${on}-worst`).textContent = duration(worst);
}

// ---- The event loop's delay, drawn ----

const LIVE_SHOWN_MS = 30000;
const SAMPLE_MS = 200;
const HEALTHY_MS = 30;
let live = [];

function takeDelay(ms) {
  const sample = { at: now(), ms, on: run?.on };
  live.push(sample);
  live = live.filter(({ at }) => sample.at - at < LIVE_SHOWN_MS + 5000);
  $('delay').textContent = ms.toFixed(ms < 9.95 ? 1 : 0);
  if (!run) return;
  records[run.on].samples.push(sample);
  run.worst = Math.max(run.worst, ms);
  showRun();
  run.samplesLeft -= 1;
  if (run.samplesLeft === 0) endRun();
}

function draw() {
  const at = now();
  const colors = getComputedStyle(document.documentElement);
  const paint = (id, samples, from, to, top) => chart($(id), { samples, from, to, top, colors });
  paint('chart-live', live, at - LIVE_SHOWN_MS, at, scale(live.filter((one) => one.at > at - LIVE_SHOWN_MS)));
  // One scale for both sides, or the difference would not be seen.
  const both = scale([...(records.pool?.samples ?? []), ...(records.loop?.samples ?? [])]);
  const longest = Math.max(RUN_SHOWN_MS, ...Object.values(records).filter(Boolean)
    .map((record) => (record.ended ?? at) - record.started));
  for (const on of ['pool', 'loop']) {
    const record = records[on];
    paint(`chart-${on}`, record?.samples ?? [], record?.started ?? 0, (record?.started ?? 0) + longest, both);
  }
}

function scale(samples) {
  const most = Math.max(60, ...samples.map(({ ms }) => ms));
  const step = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 5, 7.5, 10].map((times) => times * step).find((top) => top >= most * 1.02) ?? most;
}

function chart(canvas, { samples, from, to, top, colors }) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const color = (name) => colors.getPropertyValue(name).trim();
  const left = 52, right = width - 2, bottom = height - 20, up = 10;
  const x = (at) => left + (right - left) * (at - from) / (to - from);
  const y = (ms) => bottom - (bottom - up) * Math.min(ms, top) / top;

  context.font = '11px ui-monospace, Menlo, "DejaVu Sans Mono", monospace';
  context.fillStyle = color('--soft');
  context.strokeStyle = color('--line');
  context.lineWidth = 1;
  context.textAlign = 'right';
  for (const part of [0, 0.5, 1]) {
    const level = Math.round(y(top * part)) + 0.5;
    context.beginPath();
    context.moveTo(left, level);
    context.lineTo(right, level);
    context.stroke();
    context.fillText(part === 0 ? '0' : duration(top * part), left - 8, level + 3.5);
  }
  const seconds = Math.round((to - from) / 1000);
  context.textAlign = 'left';
  context.fillText(canvas.id === 'chart-live' ? `${seconds} s ago` : 'start', left, height - 4);
  context.textAlign = 'right';
  context.fillText(canvas.id === 'chart-live' ? 'now' : `${seconds} s`, right, height - 4);

  // A sample stands for the time that it took: a loop that was held up for a second has a block a
  // second wide. No sample, no loop.
  context.save();
  context.beginPath();
  context.rect(left, 0, right - left, height);
  context.clip();
  let before = -Infinity;
  for (const { at, ms } of samples) {
    const length = Math.max(SAMPLE_MS, ms);
    const start = x(at - before < 2 * length ? before : at - length), end = x(at);
    before = at;
    if (end < left) continue;
    const level = Math.min(y(ms), bottom - 1.5);
    context.fillStyle = color(ms > HEALTHY_MS ? '--coral' : '--sea');
    context.globalAlpha = 0.22;
    context.fillRect(start, level, end - start, bottom - level);
    context.globalAlpha = 1;
    context.fillRect(start, level - 1, end - start, 2);
  }
  context.restore();
  if (samples.length > 0 || canvas.id === 'chart-live') return;
  context.fillStyle = color('--soft');
  context.textAlign = 'center';
  context.fillText('drawn while it runs', (left + right) / 2, (bottom + up) / 2 - 14);
}

function drawForever() {
  draw();
  requestAnimationFrame(drawForever);
}

renderRooms();
renderLines();
connect();
drawForever();
