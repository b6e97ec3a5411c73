"""gRPC by hand over one HTTP/2 connection, for what no client library would do, and stubs for the
honest clients beside it."""

import pathlib
import socket
import struct
import subprocess
import sys
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

PUT = "/quorate.v1.Kv/Put"
GET = "/quorate.v1.Kv/Get"
PIPELINE = "/quorate.v1.Kv/Pipeline"
SCAN = "/quorate.v1.Kv/Scan"
BATCH = "/quorate.v1.Kv/Batch"
OPEN = "/quorate.v1.Kv/OpenSession"


def stubs(proto, directory):
    """Generates the messages and stubs of the client API, and imports them."""
    files = sorted(str(file) for file in pathlib.Path(proto, "quorate/v1").glob("*.proto"))
    tool = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}"]
    outputs = [f"--python_out={directory}", f"--grpc_python_out={directory}"]
    subprocess.run(tool + outputs + files, check=True)
    sys.path.insert(0, str(directory))
    from quorate.v1 import common_pb2, kv_pb2, kv_pb2_grpc

    return common_pb2, kv_pb2, kv_pb2_grpc


class Closed(Exception):
    """The node closed the connection."""


class Connection:
    """One connection, whose owner decides what is read, and when."""

    def __init__(self, endpoint, source=None):
        host, port = endpoint.rsplit(":", 1)
        self.authority = endpoint
        bound = (source, 0) if source else None
        self.socket = socket.create_connection((host, int(port)), 5, bound)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        # Streams that ended, with their gRPC status; -1 for one that was reset.
        self.ended = {}
        # The frames of the answer that is kept, and of which stream it is.
        self.kept, self.answer = None, b""
        self.flush()
        # The server's limits are known before anything is sent.
        while self.h2.remote_settings.initial_window_size == 65535 or self.h2.open_outbound_streams:
            self.read(5)

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            try:
                self.socket.settimeout(5)
                self.socket.sendall(data)
            except OSError as error:
                raise Closed(str(error)) from error

    def begin(self, path, message=b"", end=True, length=None):
        """Begins a call; `length` is what its message claims to be long."""
        stream = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", self.authority),
            (":path", path),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-timeout", "20S"),
        ]
        self.h2.send_headers(stream, headers)
        frame = struct.pack(">BI", 0, len(message) if length is None else length) + message
        self.h2.send_data(stream, frame, end_stream=end)
        return stream

    def cancel(self, stream):
        self.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)

    def read(self, timeout, acknowledge=True):
        """Reads once; whether anything came in time."""
        self.socket.settimeout(timeout)
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError:
            return False
        except OSError as error:
            raise Closed(str(error)) from error
        if not data:
            raise Closed("the node closed the connection")
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ConnectionTerminated):
                raise Closed(f"GOAWAY {event.error_code}")
            if isinstance(event, h2.events.StreamReset):
                self.ended[event.stream_id] = -1
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                status = dict(event.headers).get("grpc-status")
                if status is not None:
                    self.ended[event.stream_id] = int(status)
            if isinstance(event, h2.events.DataReceived) and acknowledge:
                if event.stream_id == self.kept:
                    self.answer += event.data
                length = event.flow_controlled_length
                self.h2.acknowledge_received_data(length, event.stream_id)
        self.flush()
        return True

    def wait(self, stream, patience=10):
        """The status of a call, or a failure when it does not come."""
        deadline = time.monotonic() + patience
        while stream not in self.ended:
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"a call was not answered within {patience} s")
            self.read(left)
        return self.ended.pop(stream)

    def call(self, path, message=b"", patience=10):
        stream = self.begin(path, message)
        self.flush()
        return self.wait(stream, patience)

    def ask(self, path, message, answer, patience=10):
        """A call whose answer, a message, is read into `answer`."""
        stream = self.begin(path, message.SerializeToString())
        self.kept, self.answer = stream, b""
        self.flush()
        status = self.wait(stream, patience)
        assert status == 0, f"{path} ended with code {status}"
        # One frame: a flag, the length, the message.
        answer.ParseFromString(self.answer[5:])
        return answer
