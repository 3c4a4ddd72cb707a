"""What a client of gRPC's C core does to a member: etcd's API by hand-encoded messages.

usage: main.py address [ca cert key]

Each feature that holds is a line "ok NAME"; the first that does not ends the program.
"""

import sys
import threading
import time

import grpc


def varint(n):
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def message(**fields):
    """Encodes fields f1, f2, ...: numbers, booleans, bytes (a message, too) or lists of them."""
    out = b""
    for name, value in fields.items():
        number = int(name[1:])
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, (bytes, bytearray)):
                out += varint(number << 3 | 2) + varint(len(v)) + v
            else:
                out += varint(number << 3) + varint(int(v))
    return out


def fields(data):
    """Decodes a message into lists by field number."""
    found, at = {}, 0

    def number():
        nonlocal at
        n = shift = 0
        while True:
            b = data[at]
            at += 1
            n |= (b & 0x7F) << shift
            shift += 7
            if b < 0x80:
                return n

    while at < len(data):
        key = number()
        if key & 7 == 0:
            value = number()
        elif key & 7 == 2:
            size = number()
            value = data[at:at + size]
            at += size
        else:
            raise ValueError("wire type %d" % (key & 7))
        found.setdefault(key >> 3, []).append(value)
    return found


def same(got, want):
    if got != want:
        raise AssertionError("%.200r instead of %.200r" % (got, want))


def fails(call, code, text=""):
    try:
        call()
    except grpc.RpcError as e:
        if e.code() != code or text not in e.details():
            raise AssertionError("%s %r instead of %s %r" % (e.code(), e.details(), code, text))
        return
    raise AssertionError("no error instead of %s" % code)


def watch_key(key, end=b"", **more):
    return message(f1=message(f1=key, f2=end, **more))


class Requests:
    """The client's side of a stream: what is put, until end."""

    def __init__(self):
        self.ready, self.items, self.ended = threading.Condition(), [], False

    def put(self, item):
        with self.ready:
            self.items.append(item)
            self.ready.notify()

    def end(self):
        with self.ready:
            self.ended = True
            self.ready.notify()

    def __iter__(self):
        return self

    def __next__(self):
        with self.ready:
            while not self.items and not self.ended:
                self.ready.wait()
            if self.items:
                return self.items.pop(0)
            raise StopIteration


class Etcd:
    def __init__(self, address, tls, **options):
        options = [("grpc." + name, value) for name, value in options.items()]
        options += [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        if tls:
            ca, cert, key = (open(path, "rb").read() for path in tls)
            self.channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options)
        else:
            self.channel = grpc.insecure_channel(address, options)
        unary, stream, out = self.channel.unary_unary, self.channel.stream_stream, self.channel.unary_stream
        self.range = unary("/etcdserverpb.KV/Range")
        self.put = unary("/etcdserverpb.KV/Put")
        self.delete = unary("/etcdserverpb.KV/DeleteRange")
        self.txn = unary("/etcdserverpb.KV/Txn")
        self.watch = stream("/etcdserverpb.Watch/Watch")
        self.grant = unary("/etcdserverpb.Lease/LeaseGrant")
        self.revoke = unary("/etcdserverpb.Lease/LeaseRevoke")
        self.keepalive = stream("/etcdserverpb.Lease/LeaseKeepAlive")
        self.lock = unary("/v3lockpb.Lock/Lock")
        self.unlock = unary("/v3lockpb.Lock/Unlock")
        self.snapshot = out("/etcdserverpb.Maintenance/Snapshot")
        self.nothing = unary("/etcdserverpb.KV/Nothing")

    def set(self, key, value, **more):
        return fields(self.put(message(f1=key, f2=value, **more), timeout=60))

    def get(self, key, **call):
        """The value and the revision of a key; None: it is not there."""
        resp = fields(self.range(message(f1=key), timeout=60, **call))
        if 2 not in resp:
            return None
        kv = fields(resp[2][0])
        return kv.get(5, [b""])[0]


def unary(etcd):
    etcd.set(b"py/a", b"1")
    same(etcd.get(b"py/a"), b"1")
    same(etcd.get(b"py/none"), None)
    resp = fields(etcd.txn(message(
        f1=message(f1=0, f2=3, f3=b"py/a", f7=b"1"), f2=message(f2=message(f1=b"py/a", f2=b"2"))), timeout=60))
    same(resp[2], [1])
    same(etcd.get(b"py/a"), b"2")
    same(fields(etcd.delete(message(f1=b"py/a"), timeout=60))[2], [1])
    same(etcd.get(b"py/a"), None)


def errors(etcd):
    fails(lambda: etcd.range(message(f1=b"k", f4=1 << 40), timeout=60), grpc.StatusCode.OUT_OF_RANGE,
          "etcdserver: mvcc: required revision is a future revision")
    fails(lambda: etcd.put(message(f2=b"v"), timeout=60), grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided")
    fails(lambda: etcd.put(message(f1=b"k", f2=bytes(1700 << 10)), timeout=60), grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large")
    fails(lambda: etcd.put(message(f1=b"k", f2=bytes(4 << 20)), timeout=60), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max")
    fails(lambda: etcd.put(b"\xff\xff", timeout=60), grpc.StatusCode.INTERNAL, "unmarshal")
    fails(lambda: etcd.nothing(b"", timeout=60), grpc.StatusCode.UNIMPLEMENTED, "unknown method Nothing for service etcdserverpb.KV")
    fails(lambda: etcd.revoke(message(f1=99), timeout=60), grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")


def large(etcd):
    values = {b"py/large/%d" % i: bytes([i]) * (i * 100000) for i in range(1, 15)}
    for key, value in values.items():
        etcd.set(key, value)
    for key, value in values.items():
        same(etcd.get(key), value)
    resp = fields(etcd.range(message(f1=b"py/large/", f2=b"py/large0"), timeout=60))
    same({fields(kv)[1][0]: fields(kv)[5][0] for kv in resp[2]}, values)


def gzip(etcd):
    value = b"compressible" * 10000
    etcd.put(message(f1=b"py/gzip", f2=value), compression=grpc.Compression.Gzip, timeout=60)
    same(etcd.get(b"py/gzip"), value)
    same(etcd.get(b"py/gzip", compression=grpc.Compression.Gzip), value)
    for size in range(50):
        etcd.put(message(f1=b"py/gzip", f2=b"x" * size), compression=grpc.Compression.Gzip, timeout=60)
        same(etcd.get(b"py/gzip", compression=grpc.Compression.Gzip), b"x" * size)


def many(etcd):
    """Calls that share a connection: all are answered, and with what was asked for."""
    puts = [etcd.put.future(message(f1=b"py/many/%d" % i, f2=b"%d" % i * (i % 3000)), timeout=120) for i in range(2000)]
    for p in puts:
        p.result()
    gets = [etcd.range.future(message(f1=b"py/many/%d" % i, f6=i % 2), timeout=120) for i in range(2000)]
    for i, g in enumerate(gets):
        kv = fields(fields(g.result())[2][0])
        same(kv[1][0], b"py/many/%d" % i)
        same(kv.get(5, [b""])[0], b"%d" % i * (i % 3000))


def late(call, request, timeout):
    """Whether a call has failed for its deadline, as it may."""
    try:
        call(request, timeout=timeout)
        return False
    except grpc.RpcError as e:
        # The server's clock may be the first: it resets the call, or says so, whichever serves.
        if e.code() == grpc.StatusCode.CANCELLED:
            same(e.details(), "Received RST_STREAM with error code 8")
        elif e.code() == grpc.StatusCode.UNAVAILABLE:
            same(e.details(), "etcdserver: request timed out")
        else:
            same(e.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        return True


def deadlines(etcd):
    # Nobody gives back what is locked.
    lease = fields(etcd.grant(message(f1=600), timeout=60))[2][0]
    held = fields(etcd.lock(message(f1=b"py/lock", f2=lease), timeout=60))[2][0]
    other = fields(etcd.grant(message(f1=600), timeout=60))[2][0]
    begun = time.monotonic()
    if not late(etcd.lock, message(f1=b"py/lock", f2=other), 0.3):
        raise AssertionError("a lock that is held was given")
    if not 0.25 < time.monotonic() - begun < 30:
        raise AssertionError("a deadline of 0.3 s took %.3f s" % (time.monotonic() - begun))
    for i in range(300):  # of all lengths around that of a call
        late(etcd.put, message(f1=b"py/late", f2=b"v"), i * 0.00005)
        late(etcd.range, message(f1=b"py/late"), i * 0.00005)
    etcd.unlock(message(f1=held), timeout=60)
    for l in (lease, other):
        etcd.revoke(message(f1=l), timeout=60)


def cancellation(etcd):
    lease = fields(etcd.grant(message(f1=600), timeout=60))[2][0]
    held = fields(etcd.lock(message(f1=b"py/lock", f2=lease), timeout=60))[2][0]
    other = fields(etcd.grant(message(f1=600), timeout=60))[2][0]
    waiting = [etcd.lock.future(message(f1=b"py/lock", f2=other), timeout=60) for _ in range(20)]
    time.sleep(0.2)  # until they wait; that some may not changes nothing below
    for w in waiting:
        w.cancel()
    for w in waiting:
        same(ended(w), grpc.StatusCode.CANCELLED)
    etcd.unlock(message(f1=held), timeout=60)
    for i in range(300):  # at any moment of a call
        c = etcd.put.future(message(f1=b"py/cancelled", f2=b"v"), timeout=60)
        if i % 2:
            time.sleep(i * 0.00001)
        c.cancel()
    for l in (lease, other):
        etcd.revoke(message(f1=l), timeout=60)
    etcd.set(b"py/cancelled", b"after")
    same(etcd.get(b"py/cancelled"), b"after")


def ended(call):
    """The code with which a call that was cancelled has ended."""
    try:
        call.result()
    except grpc.FutureCancelledError:
        pass
    return call.code()


def watches(etcd):
    requests = Requests()
    answers = etcd.watch(iter(requests))
    requests.put(watch_key(b"py/w/", b"py/w0"))
    created = fields(next(answers))
    same(created[3], [1])
    for i in range(200):
        etcd.set(b"py/w/%d" % (i % 7), b"%d" % i * (i * 10))
    seen = 0
    while seen < 200:
        for event in fields(next(answers)).get(11, []):
            kv = fields(fields(event)[2][0])
            same(kv[1][0], b"py/w/%d" % (seen % 7))
            same(kv.get(5, [b""])[0], b"%d" % seen * (seen * 10))
            seen += 1
    requests.put(message(f2=message(f1=created.get(2, [0])[0])))  # the client ends the watch
    same(fields(next(answers))[4], [1])
    answers.cancel()  # to end its side is not enough for a watch, as with etcd
    again = etcd.watch(iter(Requests()))
    again.cancel()
    try:
        next(again)
    except (grpc.RpcError, StopIteration):
        pass
    same(again.code(), grpc.StatusCode.CANCELLED)


def leases(etcd):
    lease = fields(etcd.grant(message(f1=60), timeout=60))[2][0]
    etcd.set(b"py/leased", b"v", f3=lease)
    requests = Requests()
    renewed = etcd.keepalive(iter(requests))
    for _ in range(100):
        requests.put(message(f1=lease))
        same(fields(next(renewed))[3], [60])
    requests.end()
    same(list(renewed), [])
    etcd.revoke(message(f1=lease), timeout=60)
    same(etcd.get(b"py/leased"), None)


def snapshots(etcd):
    size = sum(len(fields(part).get(3, [b""])[0]) for part in etcd.snapshot(b"", timeout=120))
    if size < 1 << 20:  # there are large values
        raise AssertionError("a snapshot of %d bytes" % size)


def metadata(etcd):
    _, call = etcd.range.with_call(message(f1=b"k"), timeout=60, metadata=(
        ("hasleader", "true"), ("client-api-version", "3.7"), ("x-long", "l" * 3000), ("x-bytes-bin", b"\x00\xff")))
    same(call.code(), grpc.StatusCode.OK)


def pings(address, tls):
    """A watch that nothing happens to, and a client that pings as often as it may: it is left alone."""
    etcd = Etcd(address, tls, keepalive_time_ms=6000, keepalive_timeout_ms=20000, **{"http2.max_pings_without_data": 0})
    requests = Requests()
    answers = etcd.watch(iter(requests))
    requests.put(watch_key(b"py/ping"))
    same(fields(next(answers))[3], [1])
    time.sleep(20)  # some pings
    etcd.set(b"py/ping", b"v")
    same(len(fields(next(answers))[11]), 1)
    answers.cancel()


def main():
    address, tls = sys.argv[1], sys.argv[2:]
    etcd = Etcd(address, tls)
    for feature in (unary, errors, large, gzip, many, deadlines, cancellation, watches, leases, snapshots, metadata):
        feature(etcd)
        print("ok", feature.__name__, flush=True)
    pings(address, tls)
    print("ok pings", flush=True)


main()
