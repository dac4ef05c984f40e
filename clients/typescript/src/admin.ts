import { isOrchError } from "./errors.js";
import { ageOf, pages } from "./pages.js";
import { type CallOptions, type More, type Options, Transport } from "./transport.js";
import type { FleetAuditFilter, FleetFilter, Input, Method, OperationOf, PathOf, Result, Schemas } from "./types.js";

export interface OrchAdminOptions extends Options {
  /** An admin key. One of the role `read-only` may only make calls that read. */
  adminKey: string;
}

/** OrchAdmin is a client for operators. */
export class OrchAdmin {
  readonly #transport: Transport;

  constructor(options: OrchAdminOptions) {
    this.#transport = new Transport(options, { "X-Admin-Key": options.adminKey });
  }

  /** request makes a call that has no method here, and returns the body of its 200. */
  async request<M extends Method, P extends PathOf<M>>(method: M, path: P, input: Input<OperationOf<M, P>>, options: CallOptions = {}): Promise<Result<OperationOf<M, P>>> {
    return this.#body(method, path, input, options);
  }

  async #body<M extends Method, P extends PathOf<M>>(method: M, path: P, input: Input<OperationOf<M, P>>, more: More): Promise<Result<OperationOf<M, P>>> {
    return (await this.#transport.call(method, path, input, more)).body;
  }

  /** registerProduct registers a product. Its platform key is returned only this once. */
  registerProduct(product: Schemas["RegisterRequest"], options: CallOptions = {}): Promise<Schemas["Registered"]> {
    return this.#body("post", "/products/register", { body: product }, options);
  }

  /** products lists all products, oldest first. */
  products(options: CallOptions = {}): Promise<Schemas["ProductList"]> {
    return this.#body("get", "/products", {}, options);
  }

  /** product reads one product. */
  product(productId: string, options: CallOptions = {}): Promise<Schemas["Product"]> {
    return this.#body("get", "/products/{product_id}", { path: { product_id: productId } }, options);
  }

  /** setPolicy replaces a product's policy without a check for concurrent changes. */
  async setPolicy(productId: string, policy: Schemas["Policy"], options: CallOptions = {}): Promise<Schemas["Policy"]> {
    return (await this.#body("put", "/products/{product_id}/policy", { path: { product_id: productId }, body: { policy } }, { ...options, repeatable: true })).policy;
  }

  /**
   * changePolicy replaces a product's policy with the result of `change`. If the policy is
   * changed concurrently, it is read and changed again, up to ten times; then the error is
   * `POLICY_CHANGED`.
   */
  async changePolicy(productId: string, change: (policy: Schemas["Policy"]) => Schemas["Policy"], options: CallOptions = {}): Promise<Schemas["Policy"]> {
    const path = { product_id: productId };
    for (let attempt = 1; ; attempt++) {
      const { body, headers } = await this.#transport.call("get", "/products/{product_id}", { path }, options);
      const more = { ...options, repeatable: true, headers: { "If-Match": headers.get("ETag") ?? "" } };
      try {
        return (await this.#body("put", "/products/{product_id}/policy", { path, body: { policy: change(body.policy) } }, more)).policy;
      } catch (err) {
        if (attempt === 10 || !isOrchError(err, "POLICY_CHANGED")) {
          throw err;
        }
      }
    }
  }

  /**
   * rotatePlatformKey replaces a product's platform key, and returns the new one. The old
   * key stays valid for the overlap, at most a day; without one it is invalid at once, as
   * are all earlier ones.
   */
  async rotatePlatformKey(productId: string, overlapSeconds = 0, options: CallOptions = {}): Promise<string> {
    const input = { path: { product_id: productId }, body: { overlap_seconds: Math.ceil(overlapSeconds) } };
    return (await this.#body("post", "/products/{product_id}/rotate-platform-key", input, options)).platform_api_key;
  }

  /** deleteProduct removes a product that has no engines. */
  async deleteProduct(productId: string, options: CallOptions = {}): Promise<void> {
    await this.#body("delete", "/products/{product_id}", { path: { product_id: productId } }, options);
  }

  /** engines lists one page of the engines of all products, with their owner and node, without keys. */
  async engines(filter: FleetFilter = {}, options: CallOptions = {}): Promise<Schemas["EngineList"] & { ageMs: number }> {
    const { body, headers } = await this.#transport.call("get", "/engines", { query: filter }, options);
    return { ...body, ageMs: ageOf(headers) };
  }

  /** allEngines iterates over the engines of all pages from the filter's page on. */
  async *allEngines(filter: FleetFilter = {}, options: CallOptions = {}): AsyncGenerator<Schemas["ListedEngine"]> {
    yield* pages(async (cursor) => {
      const list = await this.engines(cursor === undefined ? filter : { ...filter, cursor }, options);
      return [list.engines, list.next_cursor];
    });
  }

  /** engineById tells whose engine this is. */
  engineById(engineId: string, options: CallOptions = {}): Promise<Schemas["FleetEngine"]> {
    return this.#body("get", "/engines/by-id/{engine_id}", { path: { engine_id: engineId } }, options);
  }

  /** status counts the engines of all products. */
  async status(options: CallOptions = {}): Promise<Schemas["FleetStatus"] & { ageMs: number }> {
    const { body, headers } = await this.#transport.call("get", "/status", {}, options);
    return { ...body, ageMs: ageOf(headers) };
  }

  /** audit lists one page of the audit log, newest first. */
  audit(filter: FleetAuditFilter = {}, options: CallOptions = {}): Promise<Schemas["AuditList"]> {
    return this.#body("get", "/audit", { query: filter }, options);
  }

  /** allAudit iterates over the rows of all pages from the filter's page on. */
  async *allAudit(filter: FleetAuditFilter = {}, options: CallOptions = {}): AsyncGenerator<Schemas["AuditEntry"]> {
    yield* pages(async (cursor) => {
      const list = await this.audit(cursor === undefined ? filter : { ...filter, cursor }, options);
      return [list.entries, list.next_cursor];
    });
  }

  /** nodes lists the nodes, with their engines and room. */
  nodes(options: CallOptions = {}): Promise<Schemas["NodeList"]> {
    return this.#body("get", "/nodes", {}, options);
  }

  /** adoptNode reconnects engines with the volumes that a node has; the call may be repeated. */
  adoptNode(nodeId: string, from: Schemas["AdoptNodeRequest"] = {}, options: CallOptions = {}): Promise<Schemas["NodeAdoption"]> {
    return this.#body("post", "/nodes/{node_id}/adopt", { path: { node_id: nodeId }, body: from }, { ...options, repeatable: true });
  }

  /** health reads the state of the replica and of its dependencies. A degraded replica is not an error. */
  health(options: CallOptions = {}): Promise<Schemas["Health"]> {
    return this.#body("get", "/health", {}, { ...options, accepts: 503 });
  }

  /** live returns when the process serves. */
  async live(options: CallOptions = {}): Promise<void> {
    await this.#body("get", "/live", {}, options);
  }

  /** ready returns if the replica can admit users to running engines. */
  async ready(options: CallOptions = {}): Promise<void> {
    await this.#body("get", "/ready", {}, options);
  }
}
