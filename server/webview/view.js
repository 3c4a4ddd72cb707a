// What comes from keys, values, clients and logs is anybody's text: it reaches the page as text nodes
// alone (textContent), never as HTML, and never as an attribute that means something.
'use strict';

const every = 2000; // between two looks, ms
let token = '';     // of root, in this page's memory alone
let scrapes = [];   // of /metrics, the newest last
let busy = false;
let unasked = 0;    // looks left out while nobody is logged in
const $ = id => document.getElementById(id);

class NeedsLogin extends Error {}

async function ask(path, how = {}) {
  const headers = token ? { Authorization: token } : {};
  const answer = await fetch(path, { headers, cache: 'no-store', credentials: 'same-origin', redirect: 'error', ...how });
  if (answer.status === 401) throw new NeedsLogin((await answer.text()).trim().slice(0, 200));
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${(await answer.text()).slice(0, 200)}`);
  return answer;
}
const askJSON = async path => (await ask(path)).json();

// Control characters, and those that turn the direction of text, are shown as marks.
function shown(text) {
  return String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, '\u{FFFD}');
}
function node(kind, text, ...classes) {
  const n = document.createElement(kind);
  if (text !== undefined) n.textContent = shown(text);
  n.classList.add(...classes);
  return n;
}
function fill(table, titles, rows) {
  const all = [];
  const head = node('tr');
  const classes = titles.map(([, kind]) => (kind || 'x').split(' '));
  titles.forEach(([title], i) => head.append(node('th', title, ...classes[i])));
  all.push(head);
  for (const { cells, tone } of rows) {
    const tr = node('tr');
    if (tone) tr.classList.add(tone);
    cells.forEach((cell, i) => {
      const td = node('td', undefined, ...classes[i]);
      if (cell instanceof Node) td.append(cell); else td.textContent = shown(cell);
      tr.append(td);
    });
    all.push(tr);
  }
  table.replaceChildren(...all);
}
function svg(kind, attributes, text) {
  const n = document.createElementNS('http://www.w3.org/2000/svg', kind);
  for (const [k, v] of Object.entries(attributes)) n.setAttribute(k, v);
  if (text !== undefined) n.textContent = shown(text);
  return n;
}

const seconds = s => !(s > 0) ? '-' : s < 0.001 ? `${(s * 1e6).toFixed(0)} \u00b5s` : s < 1 ? `${(s * 1e3).toFixed(1)} ms` : `${s.toFixed(1)} s`;
const ago = s => s < 60 ? `${s.toFixed(0)} s` : s < 3600 ? `${(s / 60).toFixed(0)} min` : s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${(s / 86400).toFixed(0)} d`;
function size(n) {
  let unit = 0;
  for (; n >= 1000 && unit < 5; unit++) n /= 1000;
  return `${n < 10 && unit ? n.toFixed(1) : n.toFixed(0)} ${['B', 'kB', 'MB', 'GB', 'TB', 'PB'][unit]}`;
}
const count = n => n === 0 ? '0' : n < 0.05 ? '<0.1' : n < 10 ? n.toFixed(1) : n.toFixed(0);

// parse reads Prometheus' text: name -> [[labels, value]], for the few families that are shown.
function parse(text) {
  const wanted = /^(etcd_disk_wal_fsync_duration_seconds|etcd_server_request_duration_seconds)_(bucket|count)(?:\{(.*)\})? (\S+)$/;
  const found = {};
  for (const line of text.split('\n')) {
    const m = wanted.exec(line);
    if (!m) continue;
    const labels = {};
    for (const l of (m[3] || '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[l[1]] = l[2];
    (found[`${m[1]}_${m[2]}`] ??= []).push([labels, Number(m[4])]);
  }
  return found;
}
// buckets is a histogram, summed over its series that match: upper bound -> count.
function buckets(scrape, name, match = () => true) {
  const all = new Map();
  for (const [labels, value] of scrape?.found[`${name}_bucket`] || []) {
    if (match(labels)) all.set(Number(labels.le.replace('+Inf', 'Infinity')), (all.get(Number(labels.le.replace('+Inf', 'Infinity'))) || 0) + value);
  }
  return all;
}
function quantile(now, before, q) {
  const bounds = [...now.keys()].sort((a, b) => a - b);
  const at = b => now.get(b) - (before.get(b) || 0);
  const total = bounds.length ? at(bounds.at(-1)) : 0;
  if (!(total > 0)) return 0;
  let low = 0, below = 0;
  for (const b of bounds) {
    if (at(b) >= q * total) {
      if (b === Infinity) return low;
      return low + (b - low) * (q * total - below) / Math.max(at(b) - below, 1);
    }
    low = b; below = at(b);
  }
  return low;
}

// chart draws lines over time: [{at, p50, p99}], seconds.
function chart(place, points) {
  const w = Math.max(place.clientWidth, 200), h = 124, left = 56, bottom = 16, head = 18; // a line of text on both sides
  const top = Math.max(1e-4, ...points.map(p => p.p99 || 0)) * 1.15;
  const s = svg('svg', { viewBox: `0 0 ${w} ${h}`, role: 'img' });
  if (points.length > 1) {
    const from = points[0].at, to = points.at(-1).at;
    const x = t => left + (w - left - 4) * (t - from) / Math.max(to - from, 1);
    const y = v => head + (h - bottom - head) * (1 - v / top);
    s.append(svg('line', { x1: left, x2: w, y1: y(0), y2: y(0), class: 'axis' }));
    s.append(svg('text', { x: 0, y: head + 8 }, seconds(top)), svg('text', { x: 0, y: y(0) }, '0'));
    s.append(svg('text', { x: left, y: h - 2 }, `${ago((to - from) / 1000)} ago`), svg('text', { x: w - 28, y: h - 2 }, 'now'));
    for (const name of ['p50', 'p99']) {
      s.append(svg('polyline', { class: name, points: points.map(p => `${x(p.at).toFixed(1)},${y(p[name] || 0).toFixed(1)}`).join(' ') }));
    }
    const last = points.at(-1);
    s.append(svg('text', { x: left, y: 11, class: 'ofP50' }, `p50 ${seconds(last.p50)}`), svg('text', { x: left + 90, y: 11, class: 'ofP99' }, `p99 ${seconds(last.p99)}`));
  }
  place.replaceChildren(s);
}

// leaders draws who led when, by what this member recorded.
function leaders(place, record, names, own) {
  const now = Date.parse(record.now);
  const changes = [];
  for (const e of record.events || []) {
    const at = e.time ? Date.parse(e.time) : now - e.seconds_ago * 1000;
    if (e.kind === 'elected') changes.push([at, own]);
    else if (e.kind === 'followed') changes.push([at, e.peer || '']);
    else if (e.kind === 'lost-leader' || e.kind === 'stepped-down') changes.push([at, '']);
  }
  changes.sort((a, b) => a[0] - b[0]);
  const ids = [...names.keys()];
  const w = Math.max(place.clientWidth, 200), h = 110, s = svg('svg', { viewBox: `0 0 ${w} ${h}`, role: 'img' });
  if (changes.length) {
    const from = changes[0][0], x = t => w * (t - from) / Math.max(now - from, 1);
    changes.forEach(([at, id], i) => {
      const end = i + 1 < changes.length ? changes[i + 1][0] : now;
      const n = ids.indexOf(id);
      s.append(svg('rect', { x: x(at), width: Math.max(x(end) - x(at), 1), y: 8, height: 46, class: `bar ${n < 0 ? 'none' : 'm' + n % 5}` }));
    });
    s.append(svg('text', { x: 0, y: 70 }, `${ago((now - from) / 1000)} ago`), svg('text', { x: w - 28, y: 70 }, 'now'));
    ids.forEach((id, i) => s.append(svg('rect', { x: 110 * i, y: 86, width: 10, height: 10, class: `bar m${i % 5}` }), svg('text', { x: 110 * i + 14, y: 95 }, names.get(id).slice(0, 14))));
  } else s.append(svg('text', { x: 0, y: 30 }, 'this member has recorded no change'));
  place.replaceChildren(s);
}

let rtts = [], fsyncs = [], latest = {};

function draw() {
  const { state, record, usage } = latest;
  state.members.sort((a, b) => (a.name || a.id).localeCompare(b.name || b.id, 'en', { numeric: true }));
  const names = new Map(state.members.map(m => [m.id, m.name || m.id]));
  const leader = names.get(state.leader) || 'none';
  document.title = `${state.name}: Belay`;
  $('name').textContent = shown(`${state.name} (${state.role})`);
  $('summary').textContent = shown(`leader ${leader}, term ${state.term}, revision ${state.revision}, ${size(state.db_bytes)} of ${state.quota_bytes > 0 ? size(state.quota_bytes) : 'no quota'}, up ${ago(record.uptime_seconds)}`);
  const trouble = [...state.alarms.map(a => `ALARM ${a}`), ...(state.leader ? [] : ['no leader'])].join(', ');
  $('trouble').hidden = !trouble;
  $('trouble').textContent = shown(trouble);
  fill($('members'), [['member'], ['role', 'k'], ['id', 'k'], ['clients at', 't']], state.members.map(m => ({
    tone: m.id === state.leader ? 'leader' : '',
    cells: [m.name || '(not started)', m.id === state.leader ? 'leader' : m.learner ? 'learner' : 'voter', m.id, (m.client_urls || []).join(' ')],
  })));
  leaders($('leaders'), record, names, record.member_id);
  fill($('links'), [['to'], ['median', 'n'], ['slow ones', 'n'], ['heard', 'n'], ['', 't']], (record.links || []).map(l => ({
    tone: l.why ? 'bad' : '', cells: [names.get(l.peer) || l.peer, seconds(l.rtt_seconds), seconds(l.rtt_tail_seconds), `${ago(Math.max(l.heard_seconds_ago, 0))} ago`, l.why || ''],
  })));
  $('rtt').hidden = rtts.length < 2;
  chart($('rtt'), rtts);
  chart($('fsync'), fsyncs);
  requests();
  drawUsage(usage);
  const events = [
    ...(record.verdicts || []).map(v => ({ at: Date.parse(v.time), kind: 'verdict', text: `${[...(v.members || []), ...(v.links || [])].join(', ')}: ${v.cause}; ${(v.evidence || []).join('; ')}; ${v.advice || ''}`, tone: 'bad' })),
    ...(record.events || []).map(e => ({ at: e.time ? Date.parse(e.time) : Date.parse(record.now) - 1000 * e.seconds_ago, kind: e.kind, text: [names.get(e.peer) || e.peer, e.took_seconds > 0 ? seconds(e.took_seconds) : '', e.count > 1 ? `${e.count} times` : '', e.note].filter(Boolean).join(', ') })),
  ].sort((a, b) => b.at - a.at).slice(0, 60);
  fill($('events'), [['ago', 'n'], ['event', 'k'], ['', 't']], events.map(e => ({ tone: e.tone, cells: [ago(Math.max((Date.parse(record.now) - e.at) / 1000, 0)), e.kind, e.text] })));
}

function requests() {
  const now = scrapes.at(-1), before = scrapes[Math.max(scrapes.length - 6, 0)], name = 'etcd_server_request_duration_seconds';
  const kinds = [...new Set((now?.found[`${name}_count`] || []).map(([l]) => l.type))];
  const rows = kinds.map(kind => {
    const a = buckets(now, name, l => l.type === kind), b = before === now ? new Map() : buckets(before, name, l => l.type === kind);
    const over = (now.at - before.at) / 1000, by = (a.get(Infinity) || 0) - (b.get(Infinity) || 0);
    const recent = by >= 10 ? b : new Map();
    return { rate: over > 0 ? by / over : 0, cells: [kind, over > 0 ? count(by / over) : '-', seconds(quantile(a, recent, 0.5)), seconds(quantile(a, recent, 0.99))] };
  }).sort((a, b) => b.rate - a.rate);
  fill($('requests'), [['request'], ['per s', 'n'], ['p50', 'n'], ['p99', 'n']], rows);
}

function drawUsage(usage) {
  const rows = (usage?.top || []).filter(s => s.of === $('of').value && s.by === $('by').value);
  fill($('usage'), [[$('of').value, 't'], ['share', 'n'], ['per s', 'n']], usage
    ? rows.map(s => ({ cells: [s.name, `${(100 * s.share).toFixed(1)} %`, s.by === 'bytes' ? size(s.per_second) : count(s.per_second)] }))
    : [{ cells: ['not counted: --usage=false', '', ''] }]);
}

async function look() {
  if (busy || document.hidden && latest.state) return;
  if (!$('login').hidden && !token && ++unasked % 15) return; // users may be turned off
  busy = true;
  try {
    const [state, record, metrics] = await Promise.all([askJSON('api/state'), askJSON('/debug/belay/events'), ask('/metrics').then(r => r.text())]);
    const usage = state.usage ? await askJSON('/debug/belay/usage?top=30') : null;
    latest = { state, record, usage };
    const now = { at: Date.now(), found: parse(metrics) }, before = scrapes[Math.max(scrapes.length - 5, 0)];
    scrapes = [...scrapes, now].slice(-30);
    const name = 'etcd_disk_wal_fsync_duration_seconds', all = buckets(now, name), old = buckets(before, name);
    const recent = before && all.get(Infinity) - old.get(Infinity) >= 5 ? old : new Map();
    fsyncs = [...fsyncs, { at: now.at, p50: quantile(all, recent, 0.5), p99: quantile(all, recent, 0.99) }].slice(-300);
    const links = (record.links || []).filter(l => l.rtt_seconds > 0);
    rtts = links.length ? [...rtts, { at: now.at, p50: Math.max(...links.map(l => l.rtt_seconds)), p99: Math.max(...links.map(l => l.rtt_tail_seconds)) }].slice(-300) : rtts;
    $('login').hidden = true;
    $('main').hidden = false;
    draw();
    follow();
  } catch (e) {
    if (e instanceof NeedsLogin) {
      $('login').hidden = false;
      $('main').hidden = true;
      $('summary').textContent = '';
      if (token) { // one that is not root's, or that the member has forgotten
        token = '';
        $('trouble').hidden = false;
        $('trouble').textContent = shown(`${$('user').value} sees nothing here: ${e.message}`);
      }
    } else {
      $('trouble').hidden = false;
      $('trouble').textContent = shown(`the member does not answer: ${e.message}`);
    }
  } finally {
    busy = false;
  }
}

const bytesOf = base64 => Uint8Array.from(atob(base64 || ''), c => c.charCodeAt(0));
const textOf = base64 => new TextDecoder().decode(bytesOf(base64));
const base64Of = text => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

let listed = [], next = '';
async function browse(from) {
  const query = new URLSearchParams({ prefix: base64Of($('prefix').value), from, revision: $('revision').value.trim() || '0' });
  try {
    const got = await askJSON(`api/keys?${query}`);
    listed = from ? [...listed, ...got.keys] : got.keys;
    next = got.next || '';
    $('more').hidden = !next;
    $('found').textContent = shown(got.note || `${listed.length}${next ? ' or more' : ''} keys at revision ${got.revision}`);
    fill($('keys'), [['key', 't'], ['created', 'n spare'], ['modified', 'n'], ['version', 'n'], ['lease', 'n spare']], listed.map(k => {
      const b = node('button', textOf(k.key), 'key');
      b.type = 'button';
      b.addEventListener('click', () => history(k.key));
      return { cells: [b, k.create_revision, k.mod_revision, k.version, k.lease || ''] };
    }));
  } catch (e) { $('found').textContent = shown(e.message || 'log in first'); }
}
async function history(key) {
  $('history').hidden = false;
  $('historyOf').textContent = shown(`History of ${textOf(key)}`);
  try {
    const got = await askJSON(`api/history?${new URLSearchParams({ key })}`);
    fill($('versions'), [['revision', 'n'], ['version', 'n'], ['size', 'n'], ['value', 't']], [
      ...got.versions.map(v => ({ cells: [v.mod_revision, v.version, size(v.value_bytes), node('div', textOf(v.value) + (v.cut ? ' ...' : ''), 'value')] })),
      ...(got.note ? [{ cells: ['', '', '', got.note] }] : []),
    ]);
    $('history').scrollIntoView({ block: 'nearest' });
  } catch (e) { fill($('versions'), [['', 't']], [{ cells: [e.message] }]); }
}

// follow does once what the address asks for, as a link: #prefix=/a/ lists keys, #key=/a/b shows a history.
let wanted = new URLSearchParams(location.hash.slice(1));
addEventListener('hashchange', () => {
  wanted = new URLSearchParams(location.hash.slice(1));
  if (!$('main').hidden) follow();
});
function follow() {
  const { prefix, key } = Object.fromEntries(wanted);
  wanted = new URLSearchParams();
  if (prefix !== undefined) {
    $('prefix').value = prefix;
    browse('');
  }
  if (key !== undefined) history(base64Of(key));
}

$('browse').addEventListener('submit', e => { e.preventDefault(); $('history').hidden = true; browse(''); });
$('more').addEventListener('click', () => browse(next));
for (const id of ['of', 'by']) $(id).addEventListener('change', () => drawUsage(latest.usage));
$('login').addEventListener('submit', async e => {
  e.preventDefault();
  try {
    const answer = await fetch('/v3/auth/authenticate', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ name: $('user').value, password: $('password').value }) });
    const got = await answer.json();
    $('password').value = '';
    if (!got.token) throw new Error(got.message || got.error || 'refused (is the JSON gateway on?)');
    token = got.token;
    $('trouble').hidden = true;
    look();
  } catch (err) {
    $('trouble').hidden = false;
    $('trouble').textContent = shown(`no login: ${err.message}`);
  }
});
look();
setInterval(look, every);
