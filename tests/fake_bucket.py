"""An object store on this machine that speaks as much of Google's as our libraries use.

It answers tensorstore, gcsfs and TensorFlow through the JSON API: objects with ranges, lists in
pages, uploads in one piece, in parts or with metadata, conditions on the generation, copies and
deletions. Nothing is checked that Google would check: whoever asks may do everything.
"""

import contextlib
import dataclasses
import email
import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator

PAGE = 5  # entries in a page of a list, so that even small lists have several
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)(/o)?")
_OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/(.+)")
_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/(.+)/rewriteTo/b/([^/]+)/o/(.+)")
_MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/(.+)/moveTo/o/(.+)")
_LAYOUT = re.compile(r"/storage/v1/b/([^/]+)/storageLayout")
_PLAIN = re.compile(r"/([^/]+)/(.+)")  # the contents of an object, as TensorFlow reads them
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The store, for a test to look into and to put things in.

    Attributes:
        objects: their contents by `<bucket>/<name>`.
        url: of the server.
        requests: what was asked for, in order, as `GET /storage/v1/b/...`.
    """

    url: str
    objects: dict[str, bytes] = dataclasses.field(default_factory=dict)
    requests: list[str] = dataclasses.field(default_factory=list)
    generations: dict[str, int] = dataclasses.field(default_factory=dict)
    uploads: dict[str, tuple[str, bytearray]] = dataclasses.field(default_factory=dict)
    numbers: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to know before it imports anything."""
        return {
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "STORAGE_EMULATOR_HOST": self.url,
            # epath would ask TensorFlow, which has no other address for Google than Google's.
            "EPATH_USE_TF": "false",
            # gcsfs would ask what kind of bucket it is over a protocol that we do not speak.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def put(self, key: str, content: bytes) -> dict:
        self.objects[key] = content
        self.generations[key] = next(self.numbers)
        return self.metadata(key)

    def metadata(self, key: str) -> dict:
        bucket, _, name = key.partition("/")
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(self.objects[key])),
            "generation": str(self.generations.get(key, 1)),
            "metageneration": "1",
            "timeCreated": "2024-01-01T00:00:00.000Z",
            "updated": "2024-01-01T00:00:00.000Z",
        }


@contextlib.contextmanager
def fake_bucket() -> Iterator[Bucket]:
    """Runs the server while the block does."""
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclasses.dataclass(frozen=True)
class _Answer:
    status: int
    content: bytes = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


def _json(value, status: int = 200, **headers: str) -> _Answer:
    return _Answer(
        status, json.dumps(value).encode(), {"Content-Type": "application/json"} | headers
    )


def _error(status: int, message: str) -> _Answer:
    return _json({"error": {"code": status, "message": message}}, status)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # As many connect at once; one that is turned away tries again after a second.
    request_queue_size = 256

    def __init__(self, *args):
        super().__init__(*args)
        self.bucket = Bucket(f"http://127.0.0.1:{self.server_port}")
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        # A process that ends leaves its connections open.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Two packets, headers and body, would wait for each other.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def handle_expect_100(self):
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self):
        body = self.body()
        with self.server.lock:
            self.server.bucket.requests.append(f"{self.command} {self.path}")
            answer = respond(self.server.bucket, self.command, self.path, self.headers, body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer


def respond(bucket: Bucket, method: str, url: str, headers, body: bytes) -> _Answer:
    path, _, query_string = url.partition("?")
    query = dict(urllib.parse.parse_qsl(query_string, keep_blank_values=True))
    if path.startswith("/upload/"):
        return _upload(bucket, path, query, headers, body)
    if match := _MOVE.fullmatch(path):
        return _copy(bucket, _key(match[1], match[2]), _key(match[1], match[3]), move=True)
    if match := _COPY.fullmatch(path):
        return _copy(bucket, _key(match[1], match[2]), _key(match[3], match[4]), move=False)
    if match := _BUCKET.fullmatch(path):
        return _list(bucket, match[1], query) if match[2] else _json({"name": match[1]})
    if _LAYOUT.fullmatch(path):
        return _json({"hierarchicalNamespace": {"enabled": False}})
    match = _OBJECT.fullmatch(path) or _PLAIN.fullmatch(path)
    if match is None:
        return _error(400, f"{method} {url} is not understood")
    key = _key(match[1], match[2])
    if key not in bucket.objects:
        return _error(404, f"No such object: {key}")
    if refused := _refused(bucket, key, query):
        return refused
    if method == "DELETE":
        del bucket.objects[key]
        return _Answer(204)
    if query.get("alt") == "media" or match.re is _PLAIN:
        return _media(bucket, key, headers)
    return _json(bucket.metadata(key))


def _copy(bucket: Bucket, source: str, target: str, *, move: bool) -> _Answer:
    if source not in bucket.objects:
        return _error(404, f"No such object: {source}")
    metadata = bucket.put(target, bucket.objects[source])
    if move:
        del bucket.objects[source]
        return _json(metadata)
    return _json({"kind": "storage#rewriteResponse", "done": True, "resource": metadata})


def _key(bucket: str, name: str) -> str:
    return f"{bucket}/{urllib.parse.unquote(name)}"


def _refused(bucket: Bucket, key: str, query: dict) -> _Answer | None:
    generation = str(bucket.generations.get(key, 1)) if key in bucket.objects else "0"
    if query.get("ifGenerationMatch", generation) != generation:
        return _error(412, "conditionNotMet")
    if query.get("ifGenerationNotMatch") == generation:
        return _Answer(304)
    return None


def _media(bucket: Bucket, key: str, headers) -> _Answer:
    content = bucket.objects[key]
    shared = {
        "x-goog-generation": str(bucket.generations.get(key, 1)),
        "Content-Type": "application/octet-stream",
    }
    asked = _RANGE.fullmatch(headers.get("Range") or "")
    if asked is None:
        return _Answer(200, content, shared)
    size = len(content)
    first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
    last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
    if first > last:
        return _Answer(416, b"", {"Content-Range": f"bytes */{size}"})
    shared["Content-Range"] = f"bytes {first}-{last}/{size}"
    return _Answer(206, content[first : last + 1], shared)


def _list(bucket: Bucket, name: str, query: dict) -> _Answer:
    """Lists names, and beginnings up to the delimiter, in one order and in pages."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    found = {}
    for key in sorted(bucket.objects):
        home, _, one = key.partition("/")
        if home != name or not one.startswith(prefix):
            continue
        if one < query.get("startOffset", "") or one >= query.get("endOffset", "\U0010ffff"):
            continue
        head, cut, _ = one[len(prefix) :].partition(delimiter) if delimiter else (one, "", "")
        found[prefix + head + cut if cut else one] = None if cut else key
    entries = sorted(found.items())
    start = int(query.get("pageToken") or 0)
    stop = start + min(PAGE, int(query.get("maxResults", PAGE)))
    page = entries[start:stop]
    answer: dict = {
        "kind": "storage#objects",
        "items": [bucket.metadata(key) for _, key in page if key],
        "prefixes": [beginning for beginning, key in page if key is None],
    }
    if stop < len(entries):
        answer["nextPageToken"] = str(stop)
    return _json(answer)


def _upload(bucket: Bucket, path: str, query: dict, headers, body: bytes) -> _Answer:
    if "upload_id" in query:
        return _upload_part(bucket, query["upload_id"], headers, body)
    home = path.split("/")[5]
    kind, name, content = query["uploadType"], query.get("name"), body
    if kind == "multipart":
        described, content = _parts(headers, body)
        name = json.loads(described)["name"]
    elif name is None:
        name = json.loads(body)["name"]
    key = f"{home}/{name}"
    if refused := _refused(bucket, key, query):
        return refused
    if kind == "resumable":
        number = str(next(bucket.numbers))
        bucket.uploads[number] = (key, bytearray())
        return _json({}, Location=f"{bucket.url}{path}?upload_id={number}")
    return _json(bucket.put(key, content))


def _upload_part(bucket: Bucket, number: str, headers, body: bytes) -> _Answer:
    """Takes one part; the last one says what the whole size is."""
    key, content = bucket.uploads[number]
    content += body
    if headers.get("Content-Range", "").endswith("/*"):
        return _Answer(308, b"", {"Range": f"bytes=0-{len(content) - 1}"} if content else {})
    return _json(bucket.put(key, bytes(bucket.uploads.pop(number)[1])))


def _parts(headers, body: bytes) -> list[bytes]:
    boundary = email.message_from_string(f"Content-Type: {headers['Content-Type']}").get_boundary()
    parts = body.split(b"--" + boundary.encode())[1:-1]
    # Between header and content is an empty line, of either kind.
    return [
        re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1].removesuffix(b"\n").removesuffix(b"\r")
        for part in parts
    ]
