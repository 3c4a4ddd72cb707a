// Drives the npm package etcd3 through its features. Arguments: the members'
// URLs, and --without=<feature> to leave one out; ETCD_USER, ETCD_PASSWORD,
// ETCD_CA, ETCD_CERT and ETCD_KEY (files) if any.
// Each feature that holds prints "ok <name>". Before the last part it prints
// "kill" and waits for a line on standard input, which comes when the leader is
// about to die.
'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const fs = require('node:fs');
const readline = require('node:readline');
const { Etcd3, EtcdLockFailedError, EtcdLeaseInvalidError, STMConflictError, Range } = require('etcd3');

const without = process.argv.slice(2).filter((arg) => arg.startsWith('--without=')).map((arg) => arg.slice('--without='.length));
const hosts = process.argv.slice(2).filter((arg) => !arg.startsWith('--'));
const env = process.env;
const options = {};
if (env.ETCD_CA) {
  options.credentials = { rootCertificate: fs.readFileSync(env.ETCD_CA), privateKey: fs.readFileSync(env.ETCD_KEY), certChain: fs.readFileSync(env.ETCD_CERT) };
}
if (env.ETCD_USER) options.auth = { username: env.ETCD_USER, password: env.ETCD_PASSWORD };
const client = new Etcd3({ hosts, ...options });
const SerializableSnapshot = 0, Serializable = 1, RepeatableReads = 2, ReadCommitted = 3;

// until polls a condition.
async function until(what, fn) {
  const deadline = Date.now() + 30000;
  for (;;) {
    if (await fn()) return;
    if (Date.now() > deadline) throw new Error(`no ${what} within 30 s`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const features = {
  async kv() {
    await client.put('kv/text').value('bar');
    await client.put('kv/number').value(42);
    await client.put('kv/json').value(JSON.stringify({ a: [1, null, 'ü'] }));
    await client.put('kv/bytes').value(Buffer.from([0, 255, 128]));
    assert.equal(await client.get('kv/text'), 'bar');
    assert.equal(await client.get('kv/text').string(), 'bar');
    assert.equal(await client.get('kv/number').number(), 42);
    assert.deepEqual(await client.get('kv/json').json(), { a: [1, null, 'ü'] });
    assert.deepEqual(await client.get('kv/bytes').buffer(), Buffer.from([0, 255, 128]));
    assert.equal(await client.get('kv/none'), null);
    assert.equal(await client.get('kv/none').exists(), false);
    const before = await client.get('kv/text').exec();
    const previous = await client.put('kv/text').value('baz').getPrevious();
    assert.equal(previous.value.toString(), 'bar');
    assert.equal(await client.get('kv/text').revision(before.header.revision), 'bar');
    assert.equal(await client.get('kv/text').serializable(true).minModRevision(1).exists(), true);
    await client.put('kv/text').touch();
    assert.equal(await client.get('kv/text'), 'baz');
    const deleted = await client.delete().key('kv/text').getPrevious();
    assert.equal(deleted[0].value.toString(), 'baz');
    assert.equal((await client.delete().key('kv/text')).deleted, '0');
  },

  async ranges() {
    for (let i = 0; i < 20; i++) await client.put(`range/${String(i).padStart(2, '0')}`).value(i);
    assert.equal(await client.getAll().prefix('range/').count(), 20);
    assert.deepEqual(await client.getAll().prefix('range/').limit(2).numbers(), { 'range/00': 0, 'range/01': 1 });
    assert.deepEqual(await client.getAll().inRange({ start: 'range/05', end: 'range/08' }).keys(), ['range/05', 'range/06', 'range/07']);
    assert.deepEqual(await client.getAll().prefix('range/').sort('Key', 'Descend').limit(2).keys(), ['range/19', 'range/18']);
    assert.deepEqual(await client.getAll().prefix('range/').sort('Value', 'Ascend').limit(3).keys(), ['range/00', 'range/01', 'range/10']);
    assert.equal(Object.keys(await client.getAll().all().strings()).filter((k) => k.startsWith('range/')).length, 20);
    assert.equal((await client.getAll().prefix('range/').limit(3).exec()).more, true);
    assert.equal(client.range({ prefix: 'range/' }).includes('range/11'), true);
    assert.equal(Range.prefix('a').compare(Range.prefix('b')), -1);
    assert.equal((await client.delete().range(client.range({ start: 'range/00', end: 'range/10' }))).deleted, '10');
    assert.equal((await client.delete().prefix('range/')).deleted, '10');
  },

  async transactions() {
    await client.put('txn/a').value('1');
    const yes = await client.if('txn/a', 'Value', '==', '1').and('txn/b', 'Version', '===', 0)
      .then(client.put('txn/a').value('2'), client.get('txn/a'), client.delete().key('txn/none'))
      .else(client.put('txn/a').value('3')).commit();
    assert.equal(yes.succeeded, true);
    assert.equal(yes.responses[1].response_range.kvs[0].value.toString(), '2');
    const no = await client.if('txn/a', 'Create', '==', 0).then().else(client.get('txn/a')).commit();
    assert.equal(no.succeeded, false);
    assert.equal(no.responses[0].response_range.kvs[0].value.toString(), '2');
    for (const [column, compare, value] of [['Version', '>', 1], ['Mod', '!=', 0], ['Value', '<', '3'], ['Create', '>', 0]]) {
      assert.equal((await client.if('txn/a', column, compare, value).then().commit()).succeeded, true, column);
    }
  },

  async watches() {
    const seen = [];
    const watcher = await client.watch().prefix('watch/').withPreviousKV().create();
    watcher.on('put', (kv, previous) => seen.push(`put ${kv.key} ${kv.value} ${previous ? previous.value : '-'}`));
    watcher.on('delete', (kv, previous) => seen.push(`delete ${kv.key} ${previous.value}`));
    await client.put('watch/a').value('1');
    await client.put('watch/a').value('2');
    await client.delete().key('watch/a');
    await until('events', () => seen.length === 3);
    assert.deepEqual(seen, ['put watch/a 1 -', 'put watch/a 2 1', 'delete watch/a 2']);
    await watcher.cancel();
    const start = (await client.put('watch/b').value('old')).header.revision;
    const replayed = [];
    const past = client.watch().key('watch/b').startRevision(start).only('put').watcher();
    past.on('put', (kv) => replayed.push(kv.value.toString()));
    await client.delete().key('watch/b');
    await client.put('watch/b').value('new');
    await until('replayed events', () => replayed.length === 2);
    assert.deepEqual(replayed, ['old', 'new']);
    await past.cancel();
  },

  async leases() {
    const lease = client.lease(60, { autoKeepAlive: false });
    await lease.put('lease/key').value('here');
    const id = await lease.grant();
    assert.ok((await client.leaseClient.leaseTimeToLive({ ID: id, keys: true })).keys.some((k) => k.toString() === 'lease/key'));
    assert.equal((await lease.keepaliveOnce()).TTL, '60');
    await lease.revoke();
    assert.equal(await client.get('lease/key'), null);
    const short = client.lease(1, { autoKeepAlive: false });
    await short.put('lease/short').value('here');
    await until('expiry', async () => !(await client.get('lease/short').exists()));
    await assert.rejects(client.put('lease/late').value('x').lease(await short.grant()), EtcdLeaseInvalidError);
    const kept = client.lease(2);
    await kept.grant();
    await once(kept, 'keepaliveSucceeded');
    await kept.revoke();
  },

  async locks() {
    let holders = 0, turns = 0;
    const turn = async () => {
      for (;;) {
        try {
          return await client.lock('lock').ttl(10).do(async () => {
            assert.equal(++holders, 1);
            turns++;
            await new Promise((resolve) => setTimeout(resolve, 5));
            holders--;
          });
        } catch (err) {
          if (!(err instanceof EtcdLockFailedError)) throw err;
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
      }
    };
    await Promise.all([turn(), turn(), turn(), turn()]);
    assert.equal(turns, 4);
    const held = await client.lock('held').acquire();
    await assert.rejects(client.lock('held').acquire(), EtcdLockFailedError);
    await held.release();
    await (await client.lock('held').acquire()).release();
  },

  async elections() {
    const election = client.election('office', 5);
    const observer = await election.observe();
    const leaders = [];
    observer.on('change', (leader) => leaders.push(leader));
    const first = election.campaign('one');
    await first.wait();
    await until('first leader', () => leaders.at(-1) === 'one');
    const second = election.campaign('two');
    let elected = false;
    second.on('elected', () => { elected = true; });
    assert.equal(await election.leader(), 'one');
    await first.proclaim('still one');
    await until('proclamation', () => leaders.at(-1) === 'still one');
    assert.equal(elected, false);
    await first.resign();
    await until('second leader', () => elected && leaders.at(-1) === 'two');
    await observer.cancel();
    await second.resign();
  },

  async stm() {
    // One member: a serializable read of the package names a revision that
    // another member may not have reached.
    const one = new Etcd3({ hosts: hosts[0], ...options });
    for (const isolation of [SerializableSnapshot, Serializable, RepeatableReads]) {
      // In one revision: the package's SerializableSnapshot takes keys of
      // different ages for a conflict, on any server.
      await one.if('stm/none', 'Version', '==', 0).then(one.put('stm/a').value(100), one.put('stm/b').value(100)).commit();
      await Promise.all(Array.from({ length: 6 }, (_, n) => one.stm({ isolation, retries: 1000 }).transact(async (tx) => {
        const [a, b] = [await tx.get('stm/a').number(), await tx.get('stm/b').number()];
        await tx.put('stm/a').value(a - n);
        await tx.put('stm/b').value(b + n);
      })));
      assert.equal(await one.get('stm/a').number(), 85);
      assert.equal(await one.get('stm/b').number(), 115);
    }
    await one.stm({ isolation: ReadCommitted }).transact(async (tx) => {
      await tx.put('stm/a').value(7);
      assert.equal(await tx.get('stm/a').number(), 7);
      await tx.delete().key('stm/b');
    });
    assert.equal(await one.get('stm/b'), null);
    await assert.rejects(one.stm({ retries: 0, isolation: SerializableSnapshot }).transact(async (tx) => {
      await tx.get('stm/a');
      await one.put('stm/a').value('changed meanwhile');
      await tx.put('stm/c').value('x');
    }), STMConflictError);
    one.close();
  },

  async namespaces() {
    const ns = client.namespace('ns/');
    await ns.put('a').value('1');
    await ns.namespace('deep/').put('b').value('2');
    assert.equal(await client.get('ns/deep/b'), '2');
    assert.deepEqual(await ns.getAll().all().strings(), { a: '1', 'deep/b': '2' });
    const seen = [];
    const watcher = await ns.watch().prefix('').create();
    watcher.on('put', (kv) => seen.push(kv.key.toString()));
    await ns.put('c').value('3');
    await until('event', () => seen.length === 1);
    assert.equal(seen[0], 'c');
    await watcher.cancel();
    await ns.lock('l').do(async () => assert.equal(await client.getAll().prefix('ns/l').count(), 1));
    assert.equal((await ns.delete().all()).deleted, '3');
    assert.equal(await ns.getAll().all().count(), 0);
  },

  async cluster() {
    const { members } = await client.cluster.memberList({});
    assert.equal(members.length, hosts.length);
    assert.equal((await client.maintenance.status({})).version.split('.')[0], '3');
    assert.deepEqual((await client.maintenance.alarm({ action: 'GET' })).alarms, []);
    const stream = await client.maintenance.snapshot({});
    let bytes = 0;
    stream.on('data', (part) => { bytes += part.blob.length; });
    await once(stream, 'end');
    assert.ok(bytes > 1024, `a snapshot of ${bytes} bytes`);
  },

  // A watch, a lease and writes go on when the leader is killed.
  async failover() {
    const lease = client.lease(30);
    await lease.put('failover/leased').value('here');
    const seen = new Set();
    const watcher = await client.watch().prefix('failover/key/').create();
    watcher.on('put', (kv) => seen.add(kv.key.toString()));
    const input = readline.createInterface({ input: process.stdin });
    for (let i = 0; i < 40; i++) {
      if (i === 10) {
        console.log('kill');
        await once(input, 'line');
      }
      await until('write', () => client.put(`failover/key/${i}`).value('x').then(() => true, () => false));
    }
    input.close();
    await until('all events', () => seen.size === 40);
    assert.equal(await client.get('failover/leased'), 'here');
    await watcher.cancel();
    await lease.revoke();
  },
};

(async () => {
  for (const [name, feature] of Object.entries(features)) {
    if (without.includes(name)) continue;
    try {
      await feature();
    } catch (err) {
      console.log(`not ok ${name}: ${err.stack}`);
      process.exitCode = 1;
      continue;
    }
    console.log(`ok ${name}`);
  }
  client.close();
})();
