// The host as somebody would write it otherwise: plain `node:http`, the package `mqtt`, one process.
//
//     node host.mjs <port> <mqtt port> <token> <bucket>
//
// Takes what MinIO's webhook posts to /events and answers when the broker has acknowledged, as the sure door does: the
// same token check, routes, rules for names and message. It has neither metrics nor a memory of what it has settled.

import { createHash, randomUUID, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";
import { connect } from "mqtt";

const [port, mqttPort, token, bucket] = process.argv.slice(2);
const TOPIC_PREFIX = "iotsupport/updates";
const MAX_BODY_BYTES = 1 << 20;
const ACK_MILLISECONDS = 5_000;
const KEEP_ALIVE_MILLISECONDS = 75_000;
const MAX_FILENAME_BYTES = 1024;

const CREATED = /^(?:s3:)?(ObjectCreated:(?:Put|Post|Copy|CompleteMultipartUpload))$/;
const CONFIG_NAME = /^[0-9a-f]{2}(?:-[0-9a-f]{2}){5}\.json$/i;
const NOT_IN_A_NAME = /[\p{Cc}\p{Noncharacter_Code_Point}\uFEFF]/u;

const mqtt = connect({
  host: "127.0.0.1",
  port: Number(mqttPort),
  protocol: "mqtt",
  protocolVersion: 5,
  clientId: `node-${randomUUID()}`,
});
mqtt.on("error", (error) => console.error(String(error)));

const authorization = Buffer.from(`Bearer ${token}`);

function admits(header) {
  const given = Buffer.from(header ?? "");
  return given.length === authorization.length && timingSafeEqual(given, authorization);
}

function isAssetPath(path) {
  return (
    Buffer.byteLength(path) <= MAX_FILENAME_BYTES &&
    !NOT_IN_A_NAME.test(path) &&
    !path.split("/").includes("") &&
    !path.split(/[/\\]/).some((part) => part === "." || part === "..")
  );
}

// Where a key is announced, and as what; or the reason why it is not.
function route(key) {
  if (key.endsWith("/")) return { skip: "folder_marker" };
  if (key.startsWith("configs/")) {
    const filename = key.slice("configs/".length);
    return CONFIG_NAME.test(filename) ? { topic: `${TOPIC_PREFIX}/configs`, filename } : { skip: "bad_config_name" };
  }
  if (key.startsWith("assets/")) {
    const filename = key.slice("assets/".length);
    return isAssetPath(filename) ? { topic: `${TOPIC_PREFIX}/assets`, filename } : { skip: "bad_asset_name" };
  }
  return { skip: "unmapped" };
}

// CloudEvents' attributes in the MQTT binding.
function userProperties(record, name, key) {
  const { object } = record.s3;
  const etag = (object.eTag ?? "").replaceAll('"', "");
  const identity = [bucket, key, object.versionId || etag, object.sequencer ?? "", record.eventTime ?? ""];
  const properties = {
    specversion: "1.0",
    id: createHash("sha256").update(JSON.stringify(identity)).digest("hex").slice(0, 32),
    source: `s3://${bucket}`,
    type: `com.amazonaws.s3.${name}`,
    subject: key,
    time: record.eventTime,
    etag,
    size: String(object.size ?? 0),
  };
  if (object.versionId) properties.versionid = object.versionId;
  return properties;
}

function publish(topic, filename, properties) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ACK_MILLISECONDS, "unconfirmed");
    const options = {
      qos: 1,
      properties: { payloadFormatIndicator: true, contentType: "application/json", userProperties: properties },
    };
    mqtt.publish(topic, JSON.stringify({ filename }), options, (error) => {
      clearTimeout(timer);
      resolve(error ? "refused" : "delivered");
    });
  });
}

function settle(record) {
  const name = CREATED.exec(record?.eventName)?.[1];
  if (name === undefined) return "ignored";
  if (record.s3?.bucket?.name !== bucket) return "foreign_bucket";
  let key;
  try {
    key = decodeURIComponent(record.s3.object.key.replaceAll("+", " "));
  } catch {
    return "malformed";
  }
  const { skip, topic, filename } = route(key);
  return skip ?? publish(topic, filename, userProperties(record, name, key));
}

function answer(response, status, document, headers = {}) {
  const body = JSON.stringify(document);
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(body),
    ...headers,
  });
  response.end(body);
}

async function takeEvents(body, response) {
  let records;
  try {
    records = JSON.parse(body).Records;
  } catch {
    records = undefined;
  }
  const outcomes = Array.isArray(records) ? await Promise.all(records.map(settle)) : ["malformed"];
  answer(response, outcomes.includes("unconfirmed") ? 503 : 200, { outcomes });
}

function read(request, response) {
  const chunks = [];
  let size = 0;
  request.on("data", (chunk) => {
    size += chunk.length;
    if (size > MAX_BODY_BYTES) {
      answer(response, 413, { title: "too large" }, { connection: "close" });
      request.destroy();
    } else {
      chunks.push(chunk);
    }
  });
  request.on("end", () => takeEvents((chunks.length === 1 ? chunks[0] : Buffer.concat(chunks)).toString(), response));
}

const server = createServer((request, response) => {
  if (request.url === "/healthz") {
    answer(response, mqtt.connected ? 200 : 503, { connected: mqtt.connected });
  } else if (request.url !== "/events") {
    answer(response, 404, { title: "nothing here" });
  } else if (request.method !== "POST") {
    answer(response, 405, { title: "the method must be POST" }, { allow: "POST" });
  } else if (!admits(request.headers.authorization)) {
    answer(response, 401, { title: "a token is needed" }, { connection: "close" });
  } else {
    read(request, response);
  }
});
server.keepAliveTimeout = KEEP_ALIVE_MILLISECONDS;
server.listen(Number(port), "127.0.0.1");

process.on("SIGTERM", () => {
  server.close();
  server.closeAllConnections();
  mqtt.end();
});
