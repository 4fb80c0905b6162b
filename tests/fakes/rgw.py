"""Ceph RGW 16.2's notifications, as far as `connect` uses them: the answers are those that it was seen to give.

It adds rules by Id and never replaces the others, takes one away by `DELETE /<bucket>?notification=<id>`, has no
`Server` header, and each rule holds what its topic was when the rule was put.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

ARN = "arn:aws:sns:default::"
_SNS = 'xmlns="https://sns.amazonaws.com/doc/2010-03-31/"'
_RULE = re.compile(r"<TopicConfiguration>.*?</TopicConfiguration>", re.DOTALL)


class Rgw:
    """What it knows: buckets, with their rules by Id (XML), and topics by name: where each posts, and how."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, str]] = {}
        self.topics: dict[str, dict[str, str]] = {}
        self.posts: dict[str, str] = {}
        """Where an upload would be posted to, by the rule's Id."""
        self.endpoint_url = ""

    def rules(self, bucket: str, query: dict[str, str], method: str, body: str) -> tuple[int, str]:
        """Answer about `?notification`."""
        rules = self.buckets.get(bucket)
        if rules is None:
            return 404, "<Error><Code>NoSuchBucket</Code><Message></Message></Error>"
        if method == "GET":
            return 200, f"<NotificationConfiguration>{''.join(rules.values())}</NotificationConfiguration>"
        if method == "DELETE":
            for rule_id in [query["notification"]] if query["notification"] else list(rules):
                del rules[rule_id], self.posts[rule_id]
            return 200, ""
        for rule in _RULE.findall(body):
            rule_id, topic = re.findall(r"<Id>(.*?)</Id>", rule)[0], re.findall(f"<Topic>{ARN}(.*?)</Topic>", rule)
            if not topic or topic[0] not in self.topics:
                return 404, "<Error><Code>NoSuchKey</Code><Message></Message></Error>"
            rules[rule_id] = rule
            self.posts[rule_id] = self.topics[topic[0]]["push-endpoint"]
        return 200, ""

    def sns(self, form: dict[str, str]) -> tuple[int, str]:
        """Answer a call of SNS."""
        action = form["Action"]
        name = form.get("Name") or form.get("TopicArn", "").removeprefix(ARN)
        if action == "CreateTopic":
            keys = (key for key in form if re.fullmatch(r"Attributes\.entry\.\d+\.key", key))
            self.topics[name] = {form[key]: form[key.replace("key", "value")] for key in keys}
            result = f"<TopicArn>{ARN}{name}</TopicArn>"
        elif action == "DeleteTopic":
            del self.topics[name]
            result = ""
        elif action == "ListTopics":
            # Each rule has made one of its own, of the same ARN.
            arns = (f"<member><Name>{one}</Name><TopicArn>{ARN}{one}</TopicArn></member>" * 2 for one in self.topics)
            result = f"<Topics>{''.join(arns)}</Topics>"
        else:
            topic = self.topics[name]
            told = {"EndpointAddress": topic["push-endpoint"], "EndpointTopic": name, "HasStoredSecret": "false"}
            endpoint = json.dumps({**told, "Persistent": topic.get("persistent", "false")})
            entry = f"<entry><key>EndPoint</key><value>{escape(endpoint, {chr(34): '&quot;'})}</value></entry>"
            result = f"<Attributes>{entry}</Attributes>"
        return 200, f"<{action}Response {_SNS}><{action}Result>{result}</{action}Result></{action}Response>"


@contextmanager
def rgw() -> Iterator[Rgw]:
    """Run one on loopback."""
    store, numbers = Rgw(), itertools.count()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            bucket = url.path.strip("/")
            query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            if self.command == "POST":
                self._answer(*store.sns({name: values[0] for name, values in parse_qs(body).items()}))
            elif "notification" in query:
                self._answer(*store.rules(bucket, query, self.command, body))
            elif self.command == "PUT":
                store.buckets[bucket] = {}
                self._answer(200, "")
            else:
                self._answer(200, "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")

        def do_PUT(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            self.do_GET()

        def _answer(self, status: int, body: str) -> None:
            self.send_response_only(status)
            self.send_header("x-amz-request-id", f"tx{next(numbers):021x}-006b0da4d2-1012-default")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        store.endpoint_url = f"http://127.0.0.1:{http.server_port}"
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield store
        finally:
            http.shutdown()
            thread.join(5)
