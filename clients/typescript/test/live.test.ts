import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";

import { isOrchError, Orch, OrchAdmin, UnderWay } from "../src/index.js";

const { ORCH_URL: baseUrl = "", ORCH_ADMIN_KEY: adminKey = "" } = process.env;

// Against a service: `. .dev/env` beside `make dev`, then `npm test`.
test("an engine's life", { skip: baseUrl === "" && "ORCH_URL is not set" }, async () => {
  // A busy machine may let a call wait.
  const retry = { attempts: 20 };
  const admin = new OrchAdmin({ baseUrl, adminKey, retry });
  await admin.live();
  await admin.ready();
  assert(["leader", "follower", "none"].includes((await admin.health()).role));

  const { product_id, platform_api_key } = await admin.registerProduct({ slug: `ts-${randomBytes(6).toString("hex")}`, display_name: "TypeScript", policy: { max_engines: 1 } });
  const orch = new Orch({ baseUrl, platformKey: platform_api_key, retry });
  const user = "généré/ñ@example.com";

  const unknown = await orch.admit(user);
  assert(!unknown.admitted && unknown.reason === "engine_not_found" && unknown.rate === undefined);
  assert.equal(await orch.engine(user).then(() => "", (e: unknown) => (isOrchError(e) ? e.code : e)), "ENGINE_NOT_FOUND");

  // The same call with the same key has the same result.
  const made = await orch.provision(user, { idempotencyKey: "first" });
  assert.deepEqual(await orch.provision(user, { idempotencyKey: "first" }), made);
  assert.equal((await fetch(`${made.url}/health`)).status, 200);
  const admission = await orch.admit(user, { autoProvision: true, autoWake: true });
  assert(admission.admitted && admission.engine.api_key === made.api_key);
  const second: unknown = await new Orch({ baseUrl, platformKey: platform_api_key }).provision("another").catch((e: unknown) => e);
  assert(isOrchError(second, "QUOTA_EXCEEDED") && second.status === 429 && (second.retryAfterMs ?? 0) > 0);

  const shown = await orch.engine(user, { requestId: "of-the-test" });
  assert.deepEqual([shown.status, shown.user_id, shown.last_operation?.kind], ["running", user, "provision"]);
  assert((await orch.keepAwake(user, 60)) > new Date());

  assert.equal((await orch.stop(user)).status, "stopped");
  const denied = await orch.admit(user, { autoWake: true });
  assert.equal(denied.admitted ? "" : denied.reason, "engine_stopped");
  const begun: unknown = await orch.start(user, { waitSeconds: 0 }).catch((e: unknown) => e);
  assert(begun instanceof UnderWay && begun.engine.user_id === user, String(begun));
  // It waits for the start that is in progress.
  const again = await orch.admit(user, { autoWake: true });
  assert(again.admitted);
  assert.notEqual(await orch.rotateKey(user, { idempotencyKey: "rotation" }), made.api_key);

  const listed = [];
  for await (const engine of orch.allEngines({ limit: 1 })) {
    listed.push(engine.user_id);
  }
  assert.deepEqual(listed, [user]);
  const list = await orch.engines({ status: "running" });
  assert(list.total === 1 && list.ageMs >= 0);
  assert.equal((await orch.status()).by_status.running, 1);
  assert((await orch.metrics()).total_provisions >= 1);
  const actions = [];
  for await (const entry of orch.allAudit({ user_id: user, limit: 2 })) {
    actions.push(entry.action);
  }
  assert(actions.includes("provision") && actions.includes("rotate_key"), actions.join());

  const owned = await admin.engineById(made.engine_id);
  assert.deepEqual([owned.product_id, owned.user_id], [product_id, user]);
  const fleet = await admin.engines({ product_id });
  assert.deepEqual(fleet.engines.map((e) => e.node_id), [owned.node_id]);
  assert((await admin.nodes()).nodes.some((n) => n.node_id === owned.node_id));
  assert((await admin.status()).total >= 1);
  assert((await admin.audit({ product_id, action: "stop" })).entries.length >= 1);
  assert.equal((await admin.product(product_id)).engines, 1);
  assert((await admin.products()).total >= 1);
  assert.deepEqual(await admin.changePolicy(product_id, (policy) => ({ ...policy, max_engines: 2 })), { max_engines: 2 });
  assert.deepEqual(await admin.setPolicy(product_id, {}), {});
  assert.equal((await admin.request("get", "/registry", {})).state, "ok");

  assert(isOrchError(await admin.deleteProduct(product_id).catch((e: unknown) => e), "PRODUCT_HAS_ENGINES"));
  assert.equal((await orch.destroy(user)).engine_id, made.engine_id);
  const key = await admin.rotatePlatformKey(product_id);
  assert(isOrchError(await orch.status().catch((e: unknown) => e), "INVALID_PLATFORM_KEY"));
  assert.equal((await new Orch({ baseUrl, platformKey: key }).status()).total, 0);
  await admin.deleteProduct(product_id);
});
