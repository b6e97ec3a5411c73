"""A hostile client: what it does must cost itself, not others. `attack.py CASE` prints what it found
and ends with 0 if the nodes held."""

import argparse
import os
import struct
import tempfile
import threading
import time

import grpc
import h2.exceptions

import wire

MIB = 1 << 20
# An honest call that takes longer was held up.
PATIENCE = 5.0
# Keys with large values.
KEYS = 24


class Honest:
    """A client that does what clients do."""

    def __init__(self, cluster, node=0):
        self.kv = cluster.grpc.KvStub(grpc.insecure_channel(cluster.endpoints[node]))
        self.pb = cluster.kv

    def put(self, key, value=b"v", session=None, timeout=PATIENCE):
        request = self.pb.PutRequest(key=key, value=value, session=session)
        return self.kv.Put(request, timeout=timeout)

    def get(self, key, timeout=PATIENCE):
        return self.kv.Get(self.pb.GetRequest(key=key), timeout=timeout)

    def session(self):
        answer = self.kv.OpenSession(self.pb.OpenSessionRequest(), timeout=PATIENCE)
        return answer.session_id


class Cluster:
    def __init__(self, arguments):
        self.endpoints = arguments.endpoints.split(",")
        self.pids = arguments.pids.split(",")
        self.allowed = arguments.memory
        self.common, self.kv, self.grpc = wire.stubs(arguments.proto, arguments.directory)

    def high_water(self):
        """The most memory that a node has had, in MiB."""
        return max(high_water_of(pid) for pid in self.pids)

    def check_memory(self, when):
        most = self.high_water()
        print(f"{when}: at most {most} MiB")
        assert most <= self.allowed, f"{when} a node had {most} MiB, allowed {self.allowed}"


def high_water_of(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) // 1024


def status_of(call):
    """The gRPC code that a call ends with, by name."""
    try:
        call()
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def patiently(call, patience=20):
    """Calls until it is done, as a client does: no place is no failure yet. But a full table of
    sessions is."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            details = b"".join(bytes(value) for key, value in error.trailing_metadata() or ()
                               if key == "grpc-status-details-bin")
            busy = error.code().name in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
            if not busy or b"SESSIONS_FULL" in details or time.monotonic() > deadline:
                raise AssertionError(f"{error.code().name}: {error.details()}") from error
            time.sleep(0.05)


def reuse(cluster):
    """Two writes of one session and sequence, with other content and the same xxh3_64 of it."""
    client = Honest(cluster)
    session_id = client.session()
    session = cluster.common.WriteSession(id=session_id, sequence=1)
    # The canonical form has 20 bytes and the key before the value, so the value begins at a
    # stripe. Where the low half of a lane is the secret's, its product is nothing, and only the
    # sum of such lanes of two stripes counts: the high halves may be swapped.
    key = b"k" * 44
    secret = (bytes.fromhex("7c01812c"), bytes.fromhex("ded46de9"))

    def value(first, second):
        lanes = [secret[0] + struct.pack("<I", first), secret[1] + struct.pack("<I", second)]
        return lanes[0] + bytes(56) + lanes[1] + bytes(56) + bytes(128)

    client.put(key, value(1, 2), session)
    for other in (value(2, 1), value(1, 3), b""):
        code = status_of(lambda: client.put(key, other, session))
        assert code == "INVALID_ARGUMENT", f"a reused sequence was answered with {code}"
    assert client.put(key, value(1, 2), session).applied, "a retry has its answer"
    assert client.get(key).value == value(1, 2)
    print("reuse: every other content of the sequence was refused")


def cancel(cluster):
    """Many calls, all given up at once; honest calls share the connection."""
    client = Honest(cluster)
    client.put(b"honest")
    put = cluster.kv.PutRequest(key=b"given-up", value=b"v").SerializeToString()
    get = cluster.kv.GetRequest(key=b"honest").SerializeToString()
    connection = wire.Connection(cluster.endpoints[0])
    rounds = 0
    for number in (70, 256) * 15:
        streams = [connection.begin(wire.PUT, put) for _ in range(number)]
        for stream in streams:
            connection.cancel(stream)
        connection.flush()
        code = connection.call(wire.GET, get)
        assert code == 0, f"an honest call on the connection ended with {code}"
        rounds += 1
    print(f"cancel: the connection stayed through {rounds} rounds")


def memory(cluster):
    """Requests that are sent by half, and answers that are not read."""
    client = Honest(cluster)
    value = os.urandom(MIB)
    client.put(b"large", value)
    for number in range(KEYS):
        patiently(lambda: client.put(b"large%d" % number, os.urandom(MIB), timeout=20))
    before = cluster.high_water()
    print(f"memory: {before} MiB before")

    def half(connection):
        """Sends all but the last byte of 255 values."""
        chunk = bytes(16 << 10)
        left = {}
        try:
            for _ in range(255):
                stream = connection.begin(wire.PUT, end=False, length=MIB)
                left[stream] = MIB - 1
            deadline = time.monotonic() + 6
            while left and time.monotonic() < deadline:
                moved = False
                for stream in list(left):
                    try:
                        room = connection.h2.local_flow_control_window(stream)
                        size = min(room, left[stream], len(chunk))
                        if size > 0:
                            connection.h2.send_data(stream, chunk[:size])
                            left[stream] -= size
                            moved = True
                    except h2.exceptions.StreamClosedError:
                        left[stream] = 0
                    if left[stream] <= 0:
                        del left[stream]
                connection.flush()
                connection.read(0.001 if moved else 0.1)
        except (wire.Closed, h2.exceptions.ProtocolError) as error:
            print(f"memory: half-sent requests were ended: {error}")

    def unread(connection):
        """Asks for 255 values and reads none."""
        get = cluster.kv.GetRequest(key=b"large").SerializeToString()
        try:
            for _ in range(255):
                connection.begin(wire.GET, get)
            connection.flush()
        except (wire.Closed, h2.exceptions.ProtocolError) as error:
            print(f"memory: unread answers were ended: {error}")

    def unread_streams(connection):
        """Asks for values on each of 60 streams of operations, and reads none. They are of more
        keys than the node remembers, so that each is in memory by itself."""
        try:
            for stream in range(60):
                frame = cluster.kv.PipelineRequest()
                for one in range(8):
                    key = b"large%d" % ((8 * stream + one) % KEYS)
                    frame.operations.add(id=1 + one, get=cluster.kv.GetRequest(key=key))
                connection.begin(wire.PIPELINE, frame.SerializeToString())
            connection.flush()
        except (wire.Closed, h2.exceptions.ProtocolError) as error:
            print(f"memory: unread streams were ended: {error}")

    attacks = (
        (half, "with half-sent requests"),
        (unread, "with unread answers"),
        (unread_streams, "with unread streams"),
    )
    for attack, when in attacks:
        connections = [wire.Connection(cluster.endpoints[0]) for _ in range(4)]
        threads = [threading.Thread(target=attack, args=[one]) for one in connections]
        for thread in threads:
            thread.start()
        asked_until = time.monotonic() + 4
        honest = 0
        while time.monotonic() < asked_until or any(thread.is_alive() for thread in threads):
            began = time.monotonic()
            patiently(lambda: client.put(b"small", b"v"), PATIENCE)
            assert patiently(lambda: client.get(b"small"), PATIENCE).value == b"v"
            took = time.monotonic() - began
            assert took < PATIENCE, f"{when} an honest put and get took {took:.1f} s"
            honest += 1
        for thread in threads:
            thread.join()
        print(f"memory: {honest} honest puts and gets {when}")
        cluster.check_memory(when)
        for connection in connections:
            connection.socket.close()


def unread_scan(cluster):
    """Scans that are not read, beside writers."""
    client = Honest(cluster)
    # More of each shard than a scan reads ahead.
    for number in range(40):
        patiently(lambda: client.put(b"scanned%d" % number, os.urandom(MIB - 1), timeout=20))
    refused, slowest, written = [], [0.0], [0]
    lock = threading.Lock()
    stop = threading.Event()

    def write(writer):
        own = Honest(cluster, writer % len(cluster.endpoints))
        value = os.urandom(60 << 10)
        number = 0
        while not stop.is_set():
            began = time.monotonic()
            code = status_of(lambda: own.put(b"w%d-%d" % (writer, number % 32), value, timeout=20))
            took = time.monotonic() - began
            with lock:
                slowest[0] = max(slowest[0], took)
                written[0] += 1
                if code != "OK":
                    refused.append(code)
            number += 1
            # At most 6 MB/s from all three: far below what a node does without scans.
            stop.wait(max(0.0, 0.03 - took))

    writers = [threading.Thread(target=write, args=[number]) for number in range(3)]
    for writer in writers:
        writer.start()
    # Stale, so that each node pins its own replica of every shard, and no other node's.
    level = cluster.common.ReadOptions(level=cluster.common.READ_LEVEL_STALE)
    scan = cluster.kv.ScanRequest(read=level).SerializeToString()
    end = time.monotonic() + 15
    scans = []
    while time.monotonic() < end:
        # A pin lasts 10 s, and six scans with a message of 1 MiB each have room on a node: together
        # they keep most of what is written meanwhile.
        connection = wire.Connection(cluster.endpoints[len(scans) % len(cluster.endpoints)])
        connection.begin(wire.SCAN, scan)
        connection.flush()
        scans.append(connection)
        time.sleep(0.25)
    stop.set()
    for writer in writers:
        writer.join()
    print(f"unread-scan: {written[0]} writes beside {len(scans)} scans, at most {slowest[0]:.1f} s")
    assert written[0] > 200, "the writers hardly wrote"
    assert not refused, f"{len(refused)} of {written[0]} writes were refused: {set(refused)}"
    assert slowest[0] < 2.5, f"a write took {slowest[0]:.1f} s"


def sessions(cluster):
    """Session ids of its own making, thousands of sequences, and thousands of sessions that it has
    opened, all from another address."""
    source = "127.0.0.9"
    common, pb = cluster.common, cluster.kv
    honest = Honest(cluster)
    real = honest.session()
    connection = wire.Connection(cluster.endpoints[0], source)

    def put(session_id, sequence, value=b"v"):
        session = common.WriteSession(id=session_id, sequence=sequence)
        request = pb.PutRequest(key=b"flood", value=value, session=session, return_previous=True)
        return request.SerializeToString()

    for number in range(50):
        forged = bytes(byte ^ (number + 1) for byte in real[-8:])
        code = connection.call(wire.PUT, put(real[:-8] + forged, 1))
        assert code == 3, f"a forged session id was answered with code {code}"

    # The sequences of one session that are not answered: 1,024, and no more.
    statuses = []
    waiting = []
    for sequence in range(1, 1101):
        waiting.append(connection.begin(wire.PUT, put(real, sequence)))
        if len(waiting) == 100:
            connection.flush()
            statuses += [connection.wait(stream) for stream in waiting]
            waiting = []
    # Those that are sent together may arrive in any order.
    assert statuses.count(0) == 1024, f"{statuses.count(0)} sequences were accepted, not 1,024"
    assert set(statuses) == {0, 8}, f"with these codes: {set(statuses)}"

    # A flood of sessions with many sequences each, and with long answers: of each operation 11
    # bytes are remembered.
    stop = threading.Event()
    sent, refused = [0], [0]
    steps = [pb.BatchOperation(key=b"{flood}%d" % number, get=pb.GetAction())
             for number in range(1000)]
    steps = pb.BatchRequest(operations=steps).SerializeToString()

    def batch(session_id, sequence):
        session = common.WriteSession(id=session_id, sequence=sequence)
        # Messages in a row are one message.
        return steps + pb.BatchRequest(session=session).SerializeToString()

    def opened(connection):
        answer = connection.ask(wire.OPEN, pb.OpenSessionRequest(), pb.OpenSessionResponse())
        return answer.session_id

    def flood(number):
        own = wire.Connection(cluster.endpoints[number % len(cluster.endpoints)], source)
        while not stop.is_set():
            session_id = opened(own)
            streams = []
            for sequence in range(1, 51):
                streams.append(own.begin(wire.BATCH, batch(session_id, sequence)))
                own.flush()
            codes = [own.wait(stream, 20) for stream in streams]
            sent[0] += len(codes)
            refused[0] += sum(code == 8 for code in codes)

    attackers = [threading.Thread(target=flood, args=[number]) for number in range(4)]
    for attacker in attackers:
        attacker.start()
    end = time.monotonic() + 15
    writes = 0
    try:
        while time.monotonic() < end:
            session = common.WriteSession(id=honest.session(), sequence=1, last=True)
            # The same shard as the flood: the hash tag is the key.
            patiently(lambda: honest.put(b"flood", b"honest", session))
            writes += 1
    finally:
        stop.set()
        for attacker in attackers:
            attacker.join()
    print(f"sessions: {writes} honest writes beside {sent[0]} of a flood, {refused[0]} refused")
    # What it may have of the shard it has: so it was no lack of the flood that spared the others.
    code = connection.call(wire.PUT, put(opened(connection), 1))
    assert code == 8, f"after {sent[0]} writes of the flood one more was answered with {code}"


CASES = {
    "reuse": reuse,
    "cancel": cancel,
    "memory": memory,
    "unread-scan": unread_scan,
    "sessions": sessions,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--proto", required=True, help="the directory of the contract")
    parser.add_argument("--endpoints", required=True, help="HOST:PORT, one for each node")
    parser.add_argument("--pids", required=True, help="the processes of these nodes")
    parser.add_argument("--memory", required=True, type=int, help="MiB that a node may take")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        arguments.directory = directory
        CASES[arguments.case](Cluster(arguments))


main()
