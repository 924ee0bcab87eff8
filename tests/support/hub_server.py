"""A loopback server that imitates the Hugging Face Hub and any other site, with faults on request."""

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM = 4096  # bytes; smaller files are in git itself


@dataclass
class Repository:
    """A dataset repository of the Hub.

    Attributes:
        files: Its files by revision; those of earlier commits by their hashes.
        token: The token that reading requires, if any.
        private: True if it was made as private.
        blobs: What was uploaded for a later commit, by SHA-256.
        commits: The names of the files in each commit that a client made.
    """

    files: dict[str, dict[str, bytes]]
    token: str = ""
    private: bool = False
    blobs: dict[str, bytes] = field(default_factory=dict)
    commits: list = field(default_factory=list)

    def commit(self, revision):
        if re.fullmatch("[0-9a-f]{40}", revision):
            return revision
        return hashlib.sha1(f"{sorted(self.files[revision])} {len(self.commits)}".encode()).hexdigest()

    def change(self, revision, changes):
        """Make a commit; the state before it can be read by its hash."""
        before = self.files[revision]
        self.files[self.commit(revision)] = before
        self.files[revision] = before | changes
        self.commits.append(sorted(changes))

    def revision(self, name):
        return next((revision for revision in self.files if name in (revision, self.commit(revision))), None)


@dataclass
class Server:
    """The content of the server and its faults.

    Attributes:
        repositories: The Hub's dataset repositories by name.
        site: The files of a site that is not the Hub, by path.
        headers: The response headers of the site's files, by path; an ETag by default.
        faults: The faults of the next responses in order, by path: a status, `drop`, `short`, `wrong`, `html`, `busy`
            (429 with Retry-After) or `hang up`.
        rate: Bytes per second; 0 for no limit.
        users: The users who may write into repositories of their own name, by token.
        log: The method, path and range of every request.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    site: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: dict[str, list] = field(default_factory=lambda: defaultdict(list))
    rate: float = 0
    users: dict[str, str] = field(default_factory=dict)
    log: list = field(default_factory=list)
    sent: Counter = field(default_factory=Counter)
    url: str = ""

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"at": self})
        self._server = _Listener(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # clients wait for seconds if the queue is full


class _Handler(BaseHTTPRequestHandler):
    at: Server
    protocol_version = "HTTP/1.1"

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the client was killed
            super().handle()

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.at.log.append((self.command, path, self.headers.get("Range")))
        split = urlsplit(self.path)
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(revision|tree|paths-info)/([^/]+)/?(.*)", split.path)
        whole = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)", split.path)
        upload = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(branch|preupload|commit)/([^/]+)", split.path)
        blobs = re.fullmatch(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
        resolve = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        bucket = re.fullmatch(r"/bucket/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path)
        if self._misbehave(path):
            return
        if api:
            self._api(*map(unquote, api.groups()), "recursive=true" in split.query.lower(), body.decode())
        elif whole:
            self._api(whole[1], "revision", "main", "", False, "")
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif upload and self._may_write(upload[1]):
            getattr(self, f"_{upload[2]}")(upload[1], unquote(upload[3]), body)
        elif blobs and self._may_write(blobs[1]):
            self._batch(blobs[1], json.loads(body)["objects"])
        elif upload or blobs:
            pass  # refused
        elif path.startswith("/lfs/"):
            self._take_blob(*path.removeprefix("/lfs/").rsplit("/", 1), body)
        elif resolve:
            self._resolve(*resolve.groups())
        elif bucket:
            assert "Authorization" not in self.headers, "a token must not go to another host"
            repository = self.at.repositories[bucket[1]]
            self._send(repository.files[repository.revision(bucket[2])][bucket[3]], path)
        elif path in self.at.site:
            data = self.at.site[path]
            self._send(data, path, self.at.headers.get(path, {"ETag": f'"{hashlib.md5(data).hexdigest()}-2"'}))
        else:
            self._json(404, {"error": "Not Found"})

    def _misbehave(self, path):
        """Send the next fault if it needs no content; returns True if it did."""
        faults = self.at.faults[path]
        if not faults or faults[0] in ("drop", "short", "wrong"):
            return False
        fault = faults.pop(0)
        if fault == "html":
            self._raw(200, b"<html>Log in</html>", {"Content-Type": "text/html; charset=utf-8"})
        elif fault == "hang up":
            self.close_connection = True
        else:
            headers = {"Retry-After": "0"} if fault == "busy" else {}
            self._raw(429 if fault == "busy" else fault, b"{}", headers)
        return True

    def _api(self, name, what, revision, below, recursive, body):
        repository = self.at.repositories.get(name)
        if repository is None:
            self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        found = repository.revision(revision)
        if found is None:
            self._json(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return
        files = repository.files[found]
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            self._json(200, {"id": name, "sha": repository.commit(found), "siblings": siblings, "gated": False})
        elif what == "tree":
            self._json(200, _tree(files, f"{below}/" if below else "", recursive))
        else:
            asked = parse_qs(body)["paths"]
            self._json(200, [_facts(path, files[path]) for path in asked if path in files])

    def _create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.at.url}/datasets/{name}"}
        if self._user() is None:
            self._json(401, {"error": "Invalid username or password."})
        elif self._user() != asked["organization"]:
            self._json(403, {"error": "You don't have the rights to create a dataset under this namespace"})
        elif name in self.at.repositories:
            self._json(409, {"error": "You already created this dataset repo", **url})
        else:
            files = {".gitattributes": b"*.mds filter=lfs"}
            is_private = bool(asked.get("private")) or asked.get("visibility") == "private"  # since version 2
            self.at.repositories[name] = Repository({"main": files}, private=is_private)
            self._json(200, url)

    def _user(self):
        return self.at.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _may_write(self, name):
        if self._user() == name.partition("/")[0] and name in self.at.repositories:
            return True
        self._json(403, {"error": "Forbidden: pass a token that may write"})
        return False

    def _branch(self, name, branch, _body):
        repository = self.at.repositories[name]
        if branch in repository.files:
            self._json(409, {"error": f"Reference already exists: refs/heads/{branch}"})
        else:
            repository.files[branch] = dict(repository.files["main"])
            self._json(200, {})

    def _preupload(self, _name, _revision, body):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LFS_FROM or file["path"].endswith(".mds") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json(200, {"files": files})

    def _batch(self, name, objects):
        """Tell where to put the content of each file that is not here yet."""
        here = self.at.repositories[name].blobs
        for entry in objects:
            if entry["oid"] not in here:
                entry["actions"] = {"upload": {"href": f"{self.at.url}/lfs/{name}/{entry['oid']}"}}
        self._json(200, {"transfer": "basic", "objects": objects})

    def _take_blob(self, name, oid, body):
        if self.at.rate:
            time.sleep(len(body) / self.at.rate)
        if hashlib.sha256(body).hexdigest() != oid:
            self._json(400, {"error": "the content has another hash"})
            return
        self.at.repositories[name].blobs[oid] = body
        self._json(200, {})

    def _commit(self, name, revision, body):
        repository, changes = self.at.repositories[name], {}
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changes[value["path"]] = repository.blobs[value["oid"]]
            else:
                assert entry["key"] == "header", entry["key"]
        repository.change(revision, changes)
        commit = repository.commit(revision)
        url = f"{self.at.url}/datasets/{name}/commit/{commit}"
        self._json(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _resolve(self, name, revision, path):
        repository = self.at.repositories[name]
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self._json(401, {"error": "Access is restricted"}, {"X-Error-Code": "GatedRepo"})
            return
        found = repository.revision(revision)
        data = repository.files[found].get(path)
        if data is None:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        facts = _facts(path, data)
        commit = repository.commit(found)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{facts["oid"]}"'}
        if "lfs" not in facts:
            self._send(data, self.path, headers)
            return
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{facts["lfs"]["oid"]}"'}
        # To a client this is another host: the same server by another name.
        port = self.server.server_port
        self._raw(302, b"", headers | {"Location": f"http://localhost:{port}/bucket/{name}/{commit}/{path}"})

    def _send(self, data, path, headers=None):
        faults = self.at.faults[path]
        fault = faults.pop(0) if faults else None
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, begin, end = 200, 0, len(data)
        headers = dict(headers or {})
        if asked:
            begin, end = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data)) if asked[2] else len(data)
            if begin >= len(data):
                self._raw(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            status, headers["Content-Range"] = 206, f"bytes {begin}-{end - 1}/{len(data)}"
        part = data[begin:end]
        if fault == "wrong":
            part = bytes([part[0] ^ 1]) + part[1:]
        elif fault == "short":
            part = part[: len(part) // 2]
        headers.setdefault("Content-Type", "application/octet-stream")
        headers["Content-Length"] = str(len(part))
        self._begin(status, headers)
        if self.command == "HEAD":
            return
        if fault == "drop":
            part, self.close_connection = part[: min(100_000, len(part) // 2)], True
        try:
            for start in range(0, len(part), 1 << 14):
                self.wfile.write(part[start : start + (1 << 14)])
                self.at.sent[path] += len(part[start : start + (1 << 14)])
                if self.at.rate:
                    time.sleep((1 << 14) / self.at.rate)
        except OSError:
            self.close_connection = True

    def _json(self, status, value, headers=None):
        self._raw(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _raw(self, status, body, headers):
        self._begin(status, {"Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _tree(files, below, recursive):
    """List a folder as the Hub's API does, recursively or not."""
    found = {}
    for path, data in files.items():
        rest = path.removeprefix(below)
        if path.startswith(below) and ("/" not in rest or recursive):
            found[path] = _facts(path, data)
        elif path.startswith(below):
            folder = below + rest.partition("/")[0]
            found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
    return [*found.values()]


def _facts(path, data):
    """Describe a file as the Hub's API does."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    facts = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if len(data) >= LFS_FROM:
        facts["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return facts
