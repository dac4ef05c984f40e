import assert from "node:assert/strict";
import { test } from "node:test";

import { type Admission, isOrchError, Orch, OrchAdmin, OrchError, UnderWay } from "../src/index.js";
import { failure, json, serve } from "./server.js";

test("each call's method, path, headers and body as sent", async (t) => {
  let got: unknown[] = [];
  const baseUrl = await serve(t, (request, response, body) => {
    const header = (name: string) => request.headers[name.toLowerCase()];
    got = [`${request.method} ${request.url}`, body, header("Content-Type"), header("X-Platform-Key") ?? header("X-Admin-Key"), header("X-User-Id")];
    json(response, 200, { engines: [], entries: [], snapshots: [], snapshot: {}, policy: {}, keep_awake_until: "2026-11-24T06:49:48.184Z", new_api_key: "k" }, { ETag: '"e"' });
  });
  const [orch, admin] = [new Orch({ baseUrl: `${baseUrl}/`, platformKey: "pk" }), new OrchAdmin({ baseUrl, adminKey: "ak" })];
  const type = "application/json";
  const user = "a/b ü";
  const id = "a%2Fb%20%C3%BC";
  const calls: [string, () => Promise<unknown>, ...unknown[]][] = [
    ["provision", () => orch.provision(user, { engineVersion: "i" }), "POST /engines/provision", `{"user_id":"a/b ü","engine_version":"i"}`, type, "pk", id],
    ["admit", () => orch.admit(user), `POST /engines/${id}/admit`, "", undefined, "pk", id],
    ["admit, wake", () => orch.admit(user, { autoWake: true }), `POST /engines/${id}/admit`, `{"auto_wake":true}`, type, "pk", id],
    ["engine", () => orch.engine(user), `GET /engines/${id}`, "", undefined, "pk", id],
    ["start", () => orch.start(user), `POST /engines/${id}/start`, "", undefined, "pk", id],
    ["stop", () => orch.stop(user), `POST /engines/${id}/stop`, "", undefined, "pk", id],
    ["rotate-key", () => orch.rotateKey(user), `POST /engines/${id}/rotate-key`, "", undefined, "pk", id],
    ["keep-awake", () => orch.keepAwake(user, 1.5), `POST /engines/${id}/keep-awake`, `{"seconds":2}`, type, "pk", id],
    ["destroy", () => orch.destroy(user), `DELETE /engines/${id}`, "", undefined, "pk", id],
    ["snapshot", () => orch.snapshot(user), `POST /engines/${id}/snapshots`, "", undefined, "pk", id],
    ["snapshot, label", () => orch.snapshot(user, { label: "l" }), `POST /engines/${id}/snapshots`, `{"label":"l"}`, type, "pk", id],
    ["snapshots", () => orch.snapshots(user, { limit: 5, cursor: "c+d" }), `GET /engines/${id}/snapshots?limit=5&cursor=c%2Bd`, "", undefined, "pk", id],
    ["delete snapshot", () => orch.deleteSnapshot(user, "s/t"), `DELETE /engines/${id}/snapshots/s%2Ft`, "", undefined, "pk", id],
    ["restore", () => orch.restore(user), `POST /engines/${id}/restore`, "", undefined, "pk", id],
    ["restore, snapshot", () => orch.restore(user, { snapshotId: "s" }), `POST /engines/${id}/restore`, `{"snapshot_id":"s"}`, type, "pk", id],
    ["fork", () => orch.fork(user, "v"), `POST /engines/${id}/fork`, `{"user_id":"v"}`, type, "pk", id],
    ["fork, snapshot", () => orch.fork(user, "v", { snapshotId: "s" }), `POST /engines/${id}/fork`, `{"user_id":"v","snapshot_id":"s"}`, type, "pk", id],
    ["engines", () => orch.engines({ status: "running", limit: 5, cursor: "c+d" }), "GET /engines?status=running&limit=5&cursor=c%2Bd", "", undefined, "pk", undefined],
    ["status", () => orch.status(), "GET /status", "", undefined, "pk", undefined],
    ["metrics", () => orch.metrics(), "GET /metrics", "", undefined, "pk", undefined],
    ["audit", () => orch.audit({ user_id: user, action: "stop" }), "GET /audit?user_id=a%2Fb+%C3%BC&action=stop", "", undefined, "pk", undefined],
    ["request", () => orch.request("get", "/engines/{user_id}", { path: { user_id: user } }), `GET /engines/${id}`, "", undefined, "pk", undefined],
    ["register", () => admin.registerProduct({ slug: "s", display_name: "S" }), "POST /products/register", `{"slug":"s","display_name":"S"}`, type, "ak", undefined],
    ["policy", () => admin.setPolicy("p/q", { max_engines: 0 }), "PUT /products/p%2Fq/policy", `{"policy":{"max_engines":0}}`, type, "ak", undefined],
    ["change policy", () => admin.changePolicy("p", (old) => ({ ...old, warm_pool: 1 })), "PUT /products/p/policy", `{"policy":{"warm_pool":1}}`, type, "ak", undefined],
    ["platform key", () => admin.rotatePlatformKey("p", 60), "POST /products/p/rotate-platform-key", `{"overlap_seconds":60}`, type, "ak", undefined],
    ["delete", () => admin.deleteProduct("p"), "DELETE /products/p", "", undefined, "ak", undefined],
    ["fleet", () => admin.engines({ node_id: "n" }), "GET /engines?node_id=n", "", undefined, "ak", undefined],
    ["by id", () => admin.engineById("e"), "GET /engines/by-id/e", "", undefined, "ak", undefined],
    ["adopt", () => admin.adoptNode("n", { from: "m" }), "POST /nodes/n/adopt", `{"from":"m"}`, type, "ak", undefined],
    ["quarantine", () => admin.request("delete", "/quarantine/{engine_id}", { path: { engine_id: "e" } }), "DELETE /quarantine/e", "", undefined, "ak", undefined],
  ];
  for (const [name, call, ...want] of calls) {
    await call();
    assert.deepEqual(got, want, name);
  }
});

test("ids that fetch would leave out of a URL are refused", async (t) => {
  const baseUrl = await serve(t, () => assert.fail("it was called"));
  const orch = new Orch({ baseUrl, platformKey: "pk" });
  for (const user of ["", ".", "..", "\ud800"]) {
    await assert.rejects(orch.destroy(user), TypeError, JSON.stringify(user));
    await assert.rejects(orch.provision(user), TypeError, JSON.stringify(user));
  }
});

test("an error has its code", async (t) => {
  const baseUrl = await serve(t, (_, response) => json(response, 429, failure("RATE_LIMITED"), { "Retry-After": "7", "RateLimit-Limit": "60", "RateLimit-Remaining": "0", "RateLimit-Reset": "9" }));
  const err: unknown = await new Orch({ baseUrl, platformKey: "pk" }).admit("u").catch((e: unknown) => e);
  assert(isOrchError(err, "RATE_LIMITED") && !isOrchError(err, "OVERLOADED"));
  assert.deepEqual([err.status, err.requestId, err.retryAfterMs, err.rate], [429, "r", 7000, { limit: 60, remaining: 0, resetMs: 9000 }]);
  assert.equal(err.message, "RATE_LIMITED (429): m");
});

test("a proxy's error has none, and no redirect is followed", async (t) => {
  const calls: string[] = [];
  const baseUrl = await serve(t, (request, response) => {
    calls.push(request.url ?? "");
    const status = request.url === "/engines/moved" ? 302 : 502;
    response.writeHead(status, { "Content-Type": "text/html", Location: "/elsewhere" }).end("<html>");
  });
  const orch = new Orch({ baseUrl, platformKey: "pk" });
  for (const [user, status] of [["moved", 302], ["away", 502]] as const) {
    const err: unknown = await orch.engine(user).catch((e: unknown) => e);
    assert(err instanceof OrchError && err.status === status && err.code === undefined);
  }
  assert.deepEqual(calls, ["/engines/moved", "/engines/away"]);
});

test("a change whose end is not awaited throws UnderWay", async (t) => {
  let prefer: unknown;
  const baseUrl = await serve(t, (request, response) => {
    prefer = request.headers.prefer;
    json(response, 202, { engine_id: "e", operation: { kind: "start" } }, { Location: "/engines/u" });
  });
  const err: unknown = await new Orch({ baseUrl, platformKey: "pk" }).start("u", { waitSeconds: 2 }).catch((e: unknown) => e);
  assert(err instanceof UnderWay && err.engine.engine_id === "e" && err.engine.operation?.kind === "start");
  assert.equal(prefer, "respond-async, wait=2");
  const slow: unknown = await new Orch({ baseUrl, platformKey: "pk" }).snapshot("u").catch((e: unknown) => e);
  assert(slow instanceof UnderWay && prefer === undefined);
});

test("a degraded replica is not an error, but one without health is", async (t) => {
  const baseUrl = await serve(t, (request, response) => json(response, 503, request.headers["x-request-id"] ? failure("OVERLOADED") : { status: "degraded" }));
  const admin = new OrchAdmin({ baseUrl, adminKey: "ak" });
  assert.equal((await admin.health()).status, "degraded");
  assert(isOrchError(await admin.health({ requestId: "other" }).catch((e: unknown) => e), "OVERLOADED"));
});

test("the iterators ask for page after page", async (t) => {
  const asked: string[] = [];
  const baseUrl = await serve(t, (request, response) => {
    asked.push(request.url ?? "");
    const cursor = new URL(request.url ?? "", "http://h").searchParams.get("cursor");
    json(response, 200, cursor === null ? { engines: [{ user_id: "a" }], snapshots: [{ snapshot_id: "s" }], next_cursor: "2" } : { engines: [{ user_id: "b" }], snapshots: [{ snapshot_id: "t" }] });
  });
  const users: string[] = [];
  for await (const engine of new Orch({ baseUrl, platformKey: "pk" }).allEngines({ limit: 1, offset: 3 })) {
    users.push(engine.user_id);
  }
  assert.deepEqual(users, ["a", "b"]);
  assert.deepEqual(asked, ["/engines?limit=1&offset=3", "/engines?limit=1&cursor=2"]);
  const snapshots: string[] = [];
  for await (const snapshot of new Orch({ baseUrl, platformKey: "pk" }).allSnapshots("u")) {
    snapshots.push(snapshot.snapshot_id);
  }
  assert.deepEqual(snapshots, ["s", "t"]);
  assert.deepEqual(asked.slice(2), ["/engines/u/snapshots", "/engines/u/snapshots?cursor=2"]);
});

test("admitted narrows the type of an admission", () => {
  const denied = { admitted: false, engine: null, reason: "engine_stopped" } as Admission;
  // @ts-expect-error: the engine may be null
  assert.throws(() => denied.engine.url, TypeError);
  // @ts-expect-error: someone who is admitted has no reason
  assert.equal(denied.reason, "engine_stopped");
  const said: string = denied.admitted ? denied.engine.engine_id : denied.reason;
  assert.equal(said, "engine_stopped");
});
