// Takes one engine through its life with openapi-fetch and the types that openapi-typescript
// generates from docs/openapi.yaml (api.ts).
//
// Usage: main.js USER. The environment has ORCH_URL and ORCH_PLATFORM_KEY.
import assert from "node:assert/strict";

import createClient from "openapi-fetch";

import type { paths } from "./api.js";

const user = process.argv[2];
const { ORCH_URL: baseUrl, ORCH_PLATFORM_KEY: key } = process.env;
assert(user && baseUrl && key, "usage: ORCH_URL=... ORCH_PLATFORM_KEY=... main.js USER");

const client = createClient<paths>({ baseUrl, headers: { "X-Platform-Key": key } });
const of = { params: { path: { user_id: user } } };

/** ok returns the body of a response that must be 200. */
function ok<T>(result: { data?: T; error?: unknown; response: Response }): NonNullable<T> {
  assert(result.data && result.response.status === 200, `${result.response.url}: ${result.response.status} ${JSON.stringify(result.error)}`);
  return result.data;
}

// Without parameters that have a value if they are left out, nothing but the user is required.
const made = ok(await client.POST("/engines/provision", { body: { user_id: user } }));
assert("api_key" in made);

const admission = ok(await client.POST("/engines/{user_id}/admit", { ...of, body: {} }));
assert("admitted" in admission && admission.admitted);
// admitted has narrowed the type: the engine is not null.
assert.equal(admission.engine.engine_id, made.engine_id);
assert.equal(admission.engine.api_key, made.api_key);

const shown = ok(await client.GET("/engines/{user_id}", of));
assert.equal(shown.status, "running");
assert.equal(shown.user_id, user);
assert.equal(shown.last_operation?.outcome, "ok");

const list = ok(await client.GET("/engines", { params: { query: { status: "running", limit: 10 } } }));
assert.deepEqual([list.total, list.engines[0]?.user_id], [1, user]);

assert.equal(ok(await client.POST("/engines/{user_id}/stop", of)).status, "stopped");

const denial = ok(await client.POST("/engines/{user_id}/admit", { ...of, body: { auto_wake: true } }));
assert("admitted" in denial && !denial.admitted);
const reason: "engine_stopped" | "engine_not_found" | "engine_sleeping" | "engine_provisioning" | "engine_unhealthy" | "engine_destroying" = denial.reason;
assert.equal(reason, "engine_stopped");

assert.equal(ok(await client.POST("/engines/{user_id}/start", of)).status, "running");

const rotated = ok(await client.POST("/engines/{user_id}/rotate-key", { params: { path: { user_id: user }, header: { "Idempotency-Key": "k" } } }));
assert("new_api_key" in rotated && rotated.new_api_key !== made.api_key);

const destroyed = ok(await client.DELETE("/engines/{user_id}", of));
assert.deepEqual([destroyed.status, destroyed.engine_id], ["destroyed", made.engine_id]);

const { error, response } = await client.GET("/engines/{user_id}", of);
assert.equal(response.status, 404);
// The code's type is the list of codes: a misspelt one does not compile.
assert(error?.error.code === "ENGINE_NOT_FOUND", JSON.stringify(error));
