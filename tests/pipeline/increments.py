"""Increments over Pipeline with nothing but grpcio. Each is applied once, whatever happens to
leaders: what has no answer is sent again with its sequence, on another stream."""

import argparse
import collections
import os
import queue
import sys
import tempfile
import time

import grpc
import grpc_tools
from grpc_tools import protoc

COUNTERS = 8
IN_FLIGHT = 64
DEADLINE = 120.0


def stubs(proto, directory):
    """The modules that grpcio's tools make of the client API."""
    names = ["common", "kv"]
    files = [f"quorate/v1/{name}.proto" for name in names]
    out = [f"--python_out={directory}", f"--grpc_python_out={directory}"]
    # The tools bring the well-known types with them.
    known = os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
    assert protoc.main(["protoc", f"-I{proto}", f"-I{known}", *out, *files]) == 0
    sys.path.insert(0, directory)
    from quorate.v1 import common_pb2, kv_pb2, kv_pb2_grpc

    return common_pb2, kv_pb2, kv_pb2_grpc


class Increments:
    def __init__(self, arguments, modules):
        self.common, self.kv, self.grpc = modules
        self.endpoints = arguments.endpoints.split(",")
        self.total = arguments.count
        # Sequences that are not under way, in order, and those that are.
        self.waiting = collections.deque(range(1, self.total + 1))
        self.under_way = set()
        self.answered = set()
        self.below = 1
        self.streams = 0
        self.again = 0
        self.replayed = 0
        self.give_up = time.monotonic() + DEADLINE

    def channel(self):
        self.streams += 1
        endpoint = self.endpoints[self.streams % len(self.endpoints)]
        return grpc.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)])

    def open_session(self):
        while True:
            try:
                kv = self.grpc.KvStub(self.channel())
                return kv.OpenSession(self.kv.OpenSessionRequest(), timeout=5).session_id
            except grpc.RpcError as error:
                self.wait(error)

    def wait(self, why):
        assert time.monotonic() < self.give_up, f"out of time: {why}"
        time.sleep(0.05)

    def operation(self, sequence):
        session = self.common.WriteSession(
            id=self.session, sequence=sequence, answered_below=self.below
        )
        key = f"counter{sequence % COUNTERS}".encode()
        increment = self.kv.IncrementRequest(key=key, delta=1, session=session)
        return self.kv.PipelineOperation(id=sequence, increment=increment)

    def run(self):
        self.session = self.open_session()
        while len(self.answered) < self.total:
            # What was sent and not answered when a stream ended is unknown: the same sequences
            # make it known.
            lost = sorted(self.under_way)
            self.again += len(lost)
            self.waiting.extendleft(reversed(lost))
            self.under_way.clear()
            try:
                self.stream()
            except grpc.RpcError as error:
                self.wait(error)

    def stream(self):
        outgoing = queue.SimpleQueue()
        answers = self.grpc.KvStub(self.channel()).Pipeline(iter(outgoing.get, None))
        operations = size = 0
        ending = False
        try:
            for frame in answers:
                operations += frame.credit.operations
                size += frame.credit.bytes
                ending = ending or frame.ending
                for answer in frame.answers:
                    self.take(answer)
                batch = []
                while not ending and self.waiting and len(self.under_way) < IN_FLIGHT:
                    operation = self.operation(self.waiting[0])
                    if operations < 1 or size < operation.ByteSize():
                        break
                    operations -= 1
                    size -= operation.ByteSize()
                    self.under_way.add(self.waiting.popleft())
                    batch.append(operation)
                if batch:
                    outgoing.put(self.kv.PipelineRequest(operations=batch))
                elif not self.under_way:
                    return
        finally:
            outgoing.put(None)
            answers.cancel()

    def take(self, answer):
        sequence = answer.id
        assert sequence in self.under_way, f"{sequence} was answered and is not under way"
        self.under_way.remove(sequence)
        if answer.WhichOneof("result") == "increment":
            assert answer.increment.applied
            self.replayed += answer.increment.replayed
            self.answered.add(sequence)
            while self.below in self.answered:
                self.below += 1
            if len(self.answered) % 100 == 0:
                print(f"answered {len(self.answered)}", flush=True)
            return
        failure = answer.failure
        name = self.common.Reason.Name(failure.reason)
        assert failure.outcome != self.common.OUTCOME_NOT_APPLIED, f"{sequence}: {name}"
        self.wait(name)
        self.again += 1
        self.waiting.appendleft(sequence)

    def sums(self):
        """The sum of all counters, linearizable."""
        total = 0
        for counter in range(COUNTERS):
            request = self.kv.GetRequest(key=f"counter{counter}".encode())
            while True:
                try:
                    total += int(self.grpc.KvStub(self.channel()).Get(request, timeout=5).value)
                    break
                except grpc.RpcError as error:
                    self.wait(error)
        return total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--proto", required=True)
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        increments = Increments(arguments, stubs(arguments.proto, directory))
        increments.run()
        total = increments.sums()
    print(
        f"{total} of {increments.total}, on {increments.streams} streams, "
        f"{increments.again} sent again, {increments.replayed} replayed"
    )
    assert total == increments.total, "each increment is applied once"


main()
